"""S19: what is installed is what was looked at, to the byte: locked with hashes, the builder of the image too."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_locked_file_has_a_hash_and_comes_from_the_one_registry() -> None:
    foreign = [package["name"] for package in LOCK["package"] if "registry" not in package["source"]]
    assert foreign == ["swarm-worker"]
    files = [
        (package["name"], file)
        for package in LOCK["package"]
        for file in [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
    ]
    assert {package["source"]["registry"] for package in LOCK["package"] if package["name"] != "swarm-worker"} == {
        "https://pypi.org/simple"
    }
    assert len(files) > len(LOCK["package"])
    assert [name for name, file in files if not file["hash"].startswith("sha256:")] == []


def test_the_image_and_the_makefile_install_from_the_lock_alone() -> None:
    """`--locked` fails where the lock does not fit pyproject.toml; without it uv would resolve anew."""
    for name in ("Makefile", "deploy/Dockerfile"):
        syncs = [row for row in (ROOT / name).read_text().splitlines() if "uv sync" in row or "(UV) sync" in row]
        syncs = [row for row in syncs if not row.lstrip().startswith("#")]
        assert syncs
        assert all("--locked" in row for row in syncs), name


def test_what_builds_the_worker_is_locked_too() -> None:
    """A build requirement is fetched without a hash by every front end, so the image builds without one."""
    (builder,) = PROJECT["build-system"]["requires"]
    assert PROJECT["dependency-groups"]["build"] == [builder]
    locked = {package["name"]: package["version"] for package in LOCK["package"]}
    assert f"hatchling=={locked['hatchling']}" == builder
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    assert "--only-group build" in dockerfile
    assert "--no-deps --no-index" in dockerfile
