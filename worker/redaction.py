"""What must not be written down: credentials in URLs, what stands under a secret's name, and secrets known by value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

MASK = "***"

#: user:password@ in any URL, up to the last @ before the path: a password may hold one that was not written as %40.
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")
_SECRET_NAMES = re.compile(
    r"password|passwd|passphrase|secret|token|signature|authorization|cookie|credential|(control|api|private|access)[-_]?key",
    re.IGNORECASE,
)
#: And what stands under such a name in a URL's query.
_URL_PARAMETERS = re.compile(rf"([?&][^=&\s]*(?:{_SECRET_NAMES.pattern})[^=&\s]*=)[^&\s]+", re.IGNORECASE)
#: A shorter one would be found inside innocent words.
_LEAST_LENGTH = 6


class Redactor:
    """Masks values. The secrets it knows are masked wherever they stand: in a library's message, in a stack."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = sorted({each for each in secrets if len(each) >= _LEAST_LENGTH}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, long_enough))) if long_enough else None

    def __call__(self, value: Any) -> Any:
        """The value with its secrets masked, at any depth."""
        if isinstance(value, str):
            text = _URL_PARAMETERS.sub(rf"\g<1>{MASK}", _URL_CREDENTIALS.sub(f"{MASK}@", value))
            return text if self._known is None else self._known.sub(MASK, text)
        if isinstance(value, dict):
            return {key: MASK if is_secret_name(str(key)) else self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value


#: For those who know no secret's value.
redact = Redactor()


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is a secret."""
    return _SECRET_NAMES.search(name) is not None
