"""What tells an adapter from the one that was live when it was trained: `before.json`, beside its model.json.

No part of that document, whose hash follows from data, configuration and seed alone. So nothing vouches for it but
itself, and where it is damaged or gone an adapter is told from its base alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import structlog
from msgspec import Raw, Struct

from worker.durable import read_file
from worker.models.adapter import Probe

log = structlog.get_logger(__name__)

BEFORE_FILE = "before.json"
#: It holds a few prompts.
_LIMIT = 4_000_000


class Before(Struct, frozen=True, kw_only=True):
    """Prompts that the adapter answers in another way than the one before it; their `base` is what that one answers."""

    format: Literal[1] = 1
    sha256: str  # of that one's model.json
    probes: list[Probe]

    def turned_round(self, sha256: str) -> Before:
        """What tells that one from the adapter itself, whose model.json has this hash."""
        probes = [
            Probe(prompt=each.prompt, expected=each.base, base=each.expected, max_tokens=each.max_tokens)
            for each in self.probes
        ]
        return Before(sha256=sha256, probes=probes)


class _Sealed(Struct, frozen=True):
    """As it lies on the disk."""

    before: Raw
    sha256: str  # of `before`, as it stands there


def encode_before(before: Before) -> bytes:
    """As JSON, with a hash of its own."""
    content = msgspec.json.encode(before, order="sorted")
    return msgspec.json.encode(_Sealed(Raw(content), hashlib.sha256(content).hexdigest()))


def read_before(directory: Path) -> Before | None:
    """That of the version in `directory`; None where there is none, or none that is whole. Blocking."""
    try:
        return _opened(read_file(directory / BEFORE_FILE, limit=_LIMIT))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        log.warning("not_told_from_the_adapter_before", directory=str(directory), error=str(error))
        return None


def _opened(content: bytes) -> Before:
    sealed = msgspec.json.decode(content, type=_Sealed)
    if hashlib.sha256(sealed.before).hexdigest() != sealed.sha256:
        raise ValueError("its SHA-256 is not the one that it names")
    return msgspec.json.decode(sealed.before, type=Before)
