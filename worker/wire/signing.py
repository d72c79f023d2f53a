"""Signed commands: HMAC-SHA256 over everything that decides what a command does, and where.

The broker's permissions are the first wall; this is the second, for those who got past it. A signature cannot be moved
to another exchange, routing key (worker or scenario), message or body. Replay within its lifetime is stopped by
`command_id`, which the store takes once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from worker.wire.commands import Command
from worker.wire.names import is_slug
from worker.wire.reasons import Reason, Rejection

KEY_HEADER = "x-swarm-key-id"
SIGNATURE_HEADER = "x-swarm-signature"
#: Milliseconds that a signed command lives at most, and that its clock may be ahead of ours.
MAX_LIFETIME = 5 * 60 * 1000
MAX_AHEAD = 60 * 1000


def parse_keys(text: str) -> dict[str, bytes]:
    """Keys by id from `id:secret,id:secret`. The first signs, all verify: that is how keys change.

    A bare secret is refused: it would be taken for an id as soon as it holds a colon.

    Raises `ValueError` that never shows a secret.
    """
    keys: dict[str, bytes] = {}
    for part in text.split(","):
        key_id, colon, secret = part.strip().partition(":")
        if not colon or not is_slug(key_id) or not secret:
            raise ValueError("a control key is written id:secret, its id of letters, digits, - and _")
        if key_id in keys:
            raise ValueError(f"there are two control keys with the id {key_id}")
        keys[key_id] = secret.encode()
    return keys


def sign(
    command: Command, body: bytes, *, exchange: str, routing_key: str, message_id: str, keys: Mapping[str, bytes]
) -> dict[str, str]:
    """The headers that make `body`, the encoded `command`, a signed message; the first key signs."""
    key_id, key = next(iter(keys.items()))
    signed = _signed_text(command, body, exchange, routing_key, message_id)
    return {KEY_HEADER: key_id, SIGNATURE_HEADER: hmac.digest(key, signed, "sha256").hex()}


def verify(
    command: Command,
    body: bytes,
    *,
    exchange: str,
    routing_key: str,
    message_id: str | None,
    headers: Mapping[str, str],
    keys: Mapping[str, bytes],
    now_ms: int,
) -> Rejection | None:
    """Why this message must not be obeyed, or None where its signature is good and its time is now."""
    signature, key = headers.get(SIGNATURE_HEADER), keys.get(headers.get(KEY_HEADER, ""))
    if signature is None:
        return Rejection(Reason.UNSIGNED, f"$: no header {SIGNATURE_HEADER}")
    expected = hmac.digest(key or b"", _signed_text(command, body, exchange, routing_key, message_id or ""), "sha256")
    # Compared as bytes, since compare_digest refuses text beyond ASCII; an unknown key takes as long as a known one.
    if not hmac.compare_digest(expected.hex().encode(), signature.encode(errors="replace")) or key is None:
        return Rejection(Reason.BAD_SIGNATURE, "$: the signature does not fit the message, or its key is unknown")
    issued, expires = command.issued_at_ms, command.expires_at_ms
    if issued > now_ms + MAX_AHEAD:
        return Rejection(Reason.BAD_TIMES, "$.issued_at_ms: more than 60 s in the future; compare the clocks")
    if not issued < expires <= issued + MAX_LIFETIME:
        return Rejection(Reason.BAD_TIMES, "$.expires_at_ms: a signed command lives at most 5 min from issued_at_ms on")
    if now_ms >= expires:
        return Rejection(Reason.EXPIRED, "$.expires_at_ms: the command's time is over")
    return None


def _signed_text(command: Command, body: bytes, exchange: str, routing_key: str, message_id: str) -> bytes:
    """One field a line. Moving a line break between fields gives another number of lines, so it cannot go unseen."""
    lines = (
        "v1",
        exchange,
        routing_key,
        message_id,
        str(command.issued_at_ms),
        str(command.expires_at_ms),
        hashlib.sha256(body).hexdigest(),
    )
    return "\n".join(lines).encode(errors="surrogatepass")
