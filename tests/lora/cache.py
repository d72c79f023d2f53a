"""Where tests keep what takes long to make: outside the checkout, so that it outlives it."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/swarm-worker`, made where it is missing."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home) / "swarm-worker"
    directory.mkdir(parents=True, exist_ok=True)
    return directory
