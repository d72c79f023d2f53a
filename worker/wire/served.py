"""The document in which users of a model get it: as a file, or over HTTP."""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where an adapter is served: a server of the OpenAI kind, and the name under which it answers there.

    The server's key is not in it: whoever asks the server has it from its own configuration.
    """

    url: str
    model: str


class ServedModel(Struct, frozen=True, kw_only=True):
    """A model and where it comes from. Fields of newer workers are ignored.

    `model` holds the bytes of model.json unchanged, so whoever has the document can hash them and compare `sha256`.
    """

    format: int = 1
    scenario: str
    model_id: str
    model_version: int
    kind: str
    run_id: str
    created_at_ms: int
    sha256: str
    model: Raw
    endpoint: Endpoint | UnsetType = UNSET  # of an adapter that a server serves
    uri: str | UnsetType = UNSET  # of an adapter: its directory on the worker's machine, with the files in adapter/
