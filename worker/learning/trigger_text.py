"""Triggers as text: `count(100) or every(1h)`, with `and`, parentheses, and errors that point at the column."""

from __future__ import annotations

import re
from collections.abc import Callable

from worker.durations import parse_milliseconds
from worker.learning.triggers import (
    AlwaysTrigger,
    AndTrigger,
    CountTrigger,
    DriftTrigger,
    ManualTrigger,
    NeverTrigger,
    OrTrigger,
    QualityTrigger,
    TimeTrigger,
    TrainTrigger,
)

_LONGEST = 1_000
_DEEPEST = 20
_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z_]+)|(?P<number>[0-9.][A-Za-z0-9.+-]*)|(?P<mark>[()])|(?P<other>\S))")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+")
_LONGEST_INTERVAL_MS = 100 * 365 * 86_400_000

_BARE: dict[str, Callable[[], TrainTrigger]] = {
    "drift": DriftTrigger,
    "manual": ManualTrigger,
    "never": NeverTrigger,
    "always": AlwaysTrigger,
}
_POSSIBLE = "count(100), every(1h), quality(0.6), drift, drift(0.05), manual, never, always, joined by and, or, ( )"


class TriggerSyntaxError(ValueError):
    """The text is no trigger; the message points at the place and says what is possible."""


def parse_trigger(text: str) -> TrainTrigger:
    """The trigger that `text` means; names in any case. Raises `TriggerSyntaxError`.

    `and` binds closer than `or`. `describe()` of the result parses back to an equal trigger.
    """
    if len(text) > _LONGEST:
        raise TriggerSyntaxError(f"a trigger of {len(text)} characters is too long; at most {_LONGEST}")
    parser = _Parser(text)
    trigger = parser.any_of()
    if parser.token:
        raise parser.error(f"{parser.token!r} is not expected here; `and`, `or` or the end is")
    return trigger


class _Parser:
    """Recursive descent over one text; `token` is the next one, in lower case, empty at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self._depth = 0
        self._column = 0
        self.token = ""
        self._advance()

    def error(self, message: str, column: int | None = None) -> TriggerSyntaxError:
        """An error with the text and a mark under the place at fault (of `token`, unless said)."""
        place = self._column if column is None else column
        shown = self._text.replace("\n", " ").replace("\t", " ")
        return TriggerSyntaxError(
            f"column {place + 1}: {message}\n  {shown}\n  {' ' * place}^\npossible are {_POSSIBLE}"
        )

    def any_of(self) -> TrainTrigger:
        """The lowest level: members joined by `or`."""
        members = [self._all_of()]
        while self._take("or"):
            members.append(self._all_of())
        return members[0] if len(members) == 1 else OrTrigger(tuple(members))

    def _all_of(self) -> TrainTrigger:
        members = [self._one()]
        while self._take("and"):
            members.append(self._one())
        return members[0] if len(members) == 1 else AndTrigger(tuple(members))

    def _one(self) -> TrainTrigger:
        if self._take("("):
            self._depth += 1
            if self._depth > _DEEPEST:
                raise self.error(f"parentheses are more than {_DEEPEST} deep")
            inside = self.any_of()
            self._expect(")")
            self._depth -= 1
            return inside
        name, column = self.token, self._column
        if name not in {"count", "every", "quality"} and name not in _BARE:
            raise self.error(f"{name!r} is no trigger" if name else "a trigger is missing")
        self._advance()
        if not self._take("("):
            if name not in _BARE:
                raise self.error(f"{name} needs its value in parentheses")
            return _BARE[name]()
        value, value_column = self.token, self._column
        if value in {"", "(", ")"}:
            raise self.error("a value is missing")
        self._advance()
        self._expect(")")
        return self._made(name, value, column, value_column)

    def _made(self, name: str, value: str, column: int, value_column: int) -> TrainTrigger:
        try:
            match name:
                case "count":
                    return CountTrigger(_whole(value))
                case "every":
                    return TimeTrigger(_interval_ms(value))
                case "quality":
                    return QualityTrigger(_real(value))
                case "drift":
                    return DriftTrigger(_real(value))
        except ValueError as error:
            raise self.error(str(error), value_column) from None
        raise self.error(f"{name} takes no value", column)

    def _take(self, token: str) -> bool:
        if self.token != token:
            return False
        self._advance()
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise self.error(
                f"{token!r} is missing" if not self.token else f"{token!r} is missing before {self.token!r}"
            )

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._end)
        if found is None:
            self.token, self._column = "", len(self._text.rstrip())
            return
        self.token = found.group(found.lastgroup or 0).lower()
        self._column = found.start(found.lastgroup or 0)
        self._end = found.end()


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{text!r} is no whole number, like 100")
    return int(text)


def _real(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number, like 0.6")
    return float(text)


def _interval_ms(text: str) -> int:
    interval = round(parse_milliseconds(text))
    if interval > _LONGEST_INTERVAL_MS:
        raise ValueError(f"{text!r} is over a hundred years")
    return interval
