"""Nothing of ours loads what can run code: during the whole suite that raises where worker code is what asks for it."""

from __future__ import annotations

import functools
import marshal
import pickle
import shelve
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

#: Anywhere up the stack of a call: a library that unpickles for us is as bad (aio_pika.patterns does by default).
_ANYWHERE = ((pickle, "loads"), (pickle, "load"), (pickle, "Unpickler"), (shelve, "open"))
#: Only as the caller itself: the import system reads every module through it.
_DIRECTLY = ((marshal, "loads"), (marshal, "load"))


class CodeLoadedError(BaseException):
    """Worker code loaded what can run code. No `Exception`: nothing may catch it and go on."""


def _is_ours(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return name == "worker" or name.startswith("worker.")


def _guarded(name: str, original: Callable[..., Any], *, deep: bool) -> Callable[..., Any]:
    @functools.wraps(original)
    def guarded(*arguments: Any, **options: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if _is_ours(frame):
                raise CodeLoadedError(f"{name} was called from {frame.f_globals['__name__']}, line {frame.f_lineno}")
            frame = frame.f_back if deep else None
        return original(*arguments, **options)

    if isinstance(original, type):  # torch derives a class from Unpickler, so it must stay one
        opening: Any = original
        checked = _guarded(name, opening.__init__, deep=deep)
        return type(original.__name__, (original,), {"__init__": checked, "__wrapped__": original})
    return guarded


def forbid() -> None:
    """From now on, in this process."""
    for places, deep in ((_ANYWHERE, True), (_DIRECTLY, False)):
        for module, name in places:
            original = getattr(module, name)
            if not hasattr(original, "__wrapped__"):
                setattr(module, name, _guarded(f"{module.__name__}.{name}", original, deep=deep))
