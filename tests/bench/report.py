"""What the cases found, and whether it is what is wanted: a JSON line each as it comes, and a table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

#: Takes the figures of one case.
Emit: TypeAlias = Callable[[dict[str, Any]], None]

#: Figures in the table's own columns; all others share the last one.
_OWN = ("bench", "case", "records_per_second", "ratio", "wanted", "kept")


class Report:
    """Collects figures."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []

    def emit(self, line: dict[str, Any]) -> None:
        """Print the line and keep it for the table."""
        self._lines.append(line)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    @property
    def missed(self) -> list[str]:
        """The cases that are not what is wanted."""
        return [f"{line['bench']}: {line['case']}, wanted {line['wanted']}" for line in self._lines if not _kept(line)]

    def show(self) -> None:
        """The table."""
        table = Table(title="swarm-worker bench")
        for name in ("bench", "case"):
            table.add_column(name, no_wrap=True)
        for name in ("records/s", "ratio", "wanted"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("more")
        for line in self._lines:
            rate, ratio = line.get("records_per_second"), line.get("ratio")
            table.add_row(
                line["bench"],
                line["case"],
                "" if rate is None else f"{rate:,}",
                "" if ratio is None else f"{ratio:.2f}",
                line.get("wanted", ""),
                ", ".join(f"{name} {_text(value)}" for name, value in line.items() if name not in _OWN),
                style="" if _kept(line) else "red",
            )
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def middle(values: list[float]) -> float:
    """The median."""
    return median(values)


def _kept(line: dict[str, Any]) -> bool:
    return bool(line.get("kept", True))


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
