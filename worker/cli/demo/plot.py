"""The plot in the terminal: how often games were won over time, and where a model was taken up."""

from __future__ import annotations

from collections.abc import Sequence

import plotext  # type: ignore[import-untyped]  # it has no types

from worker.cli.demo.state import Course

_WIDTH, _HEIGHT = 50, 13
#: Seconds that one point stands for.
_BIN = 3.0
#: Of the axis of time.
_PARTS = 5
_FOLLOWING, _ALONE = "●", "·"

#: Below the plots.
LEGEND = (
    f"% of games won, over seconds.   {_FOLLOWING} nodes that follow the model   {_ALONE} the node that goes without   "
    "┊ a new model"
)


def plots(courses: Sequence[Course], *, began_ms: int, seconds: float, columns: int) -> str:
    """One plot a game, side by side as far as `columns` of the terminal reach. No control characters."""
    beside = max(1, columns // (_WIDTH + 2))
    drawn = [_plot(course, began_ms=began_ms, seconds=seconds) for course in courses]
    rows = [drawn[start : start + beside] for start in range(0, len(drawn), beside)]
    return "\n\n".join("\n".join("  ".join(parts) for parts in zip(*row, strict=True)) for row in rows)


def _plot(course: Course, *, began_ms: int, seconds: float) -> list[str]:
    """Its lines, all of one width."""
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(_WIDTH, _HEIGHT)
    figure.title(course.game)
    highest = 0.0
    for marker, alone in ((_ALONE, True), (_FOLLOWING, False)):
        points = course.tally.over_time(since_ms=began_ms, seconds=_BIN, alone=alone)
        if points:
            shares = [share * 100 for _, share in points]
            highest = max(highest, *shares)
            figure.draw(figure.signal([second for second, _ in points], shares, marker=marker))
    for taken_up_ms in course.tally.taken_up_ms.values():
        figure.line((taken_up_ms - began_ms) / 1000, "vertical", style="dotted")
    figure.ruler("x").lim(0, seconds)
    ticks = [round(seconds * part / _PARTS) for part in range(_PARTS + 1)]
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    figure.ruler("y").lim(0, min(100.0, 20.0 * (highest // 20 + 1)))
    lines = [line.rstrip("\n") for line in plotext.uncolorize(str(figure.build())).splitlines()]
    return [line.ljust(_WIDTH)[:_WIDTH] for line in lines]
