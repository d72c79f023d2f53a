"""Kinds of values that settings have: durations and lists."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from worker.durations import parse_milliseconds


def parse_duration(value: object) -> float:
    """Seconds from `10s`, `250ms`, `15m`, `1h`, `1h30m`, `2d` or a plain number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).strip()
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,15})?", text):
        return float(text)
    return parse_milliseconds(text) / 1000


def split_commas(value: object) -> object:
    """The parts of a text between commas, without what is empty."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split_commas)]
