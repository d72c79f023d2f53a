"""The preset file of a llama-server router (`--models-preset`): a section for each adapter version, `[S@17]`.

Only the sections of scenarios that we apply adapters for are ours, and `[base]`, the model without any, which nodes ask
before there is an adapter; one of that name that says more is its owner's. What else is in the file (`[*]` with options
for all, sections of other models, comments between sections) is its owner's and stays as it is, byte by byte. A section
ends with its last option and the empty line after it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from worker.durable import make_private_directory, read_file, replace_file
from worker.errors import ApplyFailed
from worker.models.applicators.versions import belongs_to

#: A preset without anything, which a router can start on.
EMPTY = "version = 1\n"
#: The section of the base alone. No scenario's version has this name, since those have an @.
BASE = "base"

_HEADER = re.compile(r"\[[ \t]*(?P<name>[^]\n]*?)[ \t]*\]")
#: The parser takes ; and # for a comment wherever they stand, and knows no quotes; --lora splits at commas. The last
#: ones are bytes that are no UTF-8.
_UNWRITABLE = re.compile(r"""[;#,"\\\r\n\udc80-\udcff]|^\s|\s$""")
_OUR_BASE = re.compile(r"\[base\]\nmodel = [^\n]*\n\s*")
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")

#: Empty lines and comments.
_NO_OPTION = re.compile(r"[ \t]*(?:[;#]|[\r\n]|$)")
_EMPTY_LINE = re.compile(r"[ \t]*(?:\r\n|\n|\r)")

_SIZE_LIMIT = 1 << 20
#: The router may run as another user.
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class Section:
    """One adapter on its base, or the base alone."""

    name: str
    model: Path
    lora: Path | None = None

    def text(self) -> str:
        """As it stands in the file. Raises `ApplyFailed` for a path that the file's syntax cannot hold."""
        for path in (self.model, self.lora):
            if path is not None and not fits_into_preset(path):
                raise ApplyFailed(
                    f'a preset of llama-server cannot hold the path {str(path)!r}: no ; # , " \\ or line break, and no '
                    "blank at an end; move it"
                )
        lora = "" if self.lora is None else f"lora = {self.lora}\n"
        return f"[{self.name}]\nmodel = {self.model}\n{lora}\n"


def fits_into_preset(path: Path) -> bool:
    """Whether the file's syntax can hold a path."""
    return _UNWRITABLE.search(str(path)) is None


def changed(preset: str, scenario: str, *, keep: Collection[str | None], put: Section | None = None) -> str:
    """The preset with this scenario's sections dropped but for `keep`, and with `put` in place of its older self."""
    found = False
    text = ""
    for name, block in _blocks(preset):
        if put is not None and name == put.name:
            text += "" if found else put.text()
            found = True
        elif name is None or not belongs_to(scenario, name) or name in keep:
            text += block
    if put is not None and not found:
        text += ("" if not text or text.endswith("\n") else "\n") + put.text()
    return text


def with_base(preset: str, base: Path) -> str:
    """The preset with the section of the base alone. It takes no memory until somebody asks for it."""
    section, there = Section(BASE, base).text(), section_text(preset, BASE)
    if there is None:
        return f"{preset}{'' if preset.endswith(chr(10)) else chr(10)}{section}"
    if _OUR_BASE.fullmatch(there) is None:
        return preset
    return "".join(section if name == BASE else block for name, block in _blocks(preset))


def section_text(preset: str, name: str) -> str | None:
    """A section as it stands in the file."""
    return next((block for each, block in _blocks(preset) if each == name), None)


class PresetFile:
    """The file itself. Blocking; for `asyncio.to_thread`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def create(self, base: Path) -> None:
        """Have one with the base's section: no router starts without a file. Raises `ApplyFailed`."""
        preset = self.read()
        text = with_base(preset, base)
        if text != preset:
            self.write(text)

    def read(self) -> str:
        """What is in it, or would be. Raises `ApplyFailed`."""
        try:
            return read_file(self.path, limit=_SIZE_LIMIT).decode()
        except FileNotFoundError:
            return EMPTY
        except (OSError, ValueError) as error:
            raise ApplyFailed(
                f"{self.path} (SWARM_LLAMA_PRESET) cannot be read: {error}; it must be a file in UTF-8, no link, and "
                "readable for this worker"
            ) from error

    def write(self, text: str) -> None:
        """Put `text` in its place at once. Raises `ApplyFailed`."""
        try:
            make_private_directory(self.path.parent)
            replace_file(self.path, text.encode(), mode=_MODE)
        except OSError as error:
            raise ApplyFailed(
                f"{self.path} (SWARM_LLAMA_PRESET) cannot be written: {error}; free space or fix its rights"
            ) from error


def _blocks(preset: str) -> list[tuple[str | None, str]]:
    """The file cut before each header and after each section; what stands between sections has no name."""
    blocks: list[tuple[str | None, str]] = []
    name, block, between = None, "", ""  # `between` belongs to the section only where an option follows
    for line in _LINES.findall(preset):
        header = _HEADER.match(line)
        if header is not None:
            blocks += _ended(name, block, between)
            name, block, between = header["name"], line, ""
        elif _NO_OPTION.match(line):
            between += line
        else:
            block, between = block + between + line, ""
    return blocks + _ended(name, block, between)


def _ended(name: str | None, block: str, between: str) -> list[tuple[str | None, str]]:
    """A section with the one empty line that ends it, and what comes after it up to the next header."""
    empty = _EMPTY_LINE.match(between)
    cut = 0 if empty is None else empty.end()
    return [(name, block + between[:cut]), (None, between[cut:])]
