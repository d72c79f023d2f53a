"""No node is sent to a server that is not ours: a document that leads to one is withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from worker.models.applicators.endpoint import CurrentDocuments, DocumentDamaged
from worker.models.applicators.own_server import OwnServer

log = structlog.get_logger(__name__)


async def withdraw_from_strangers(documents: CurrentDocuments, scenario: str, servers: Iterable[OwnServer]) -> None:
    """Remove the scenario's document where it names one of `servers` whose port is somebody else's by now.

    One of ours whose pid file was removed is left named: it answers as it should. Raises `ApplyFailed`.
    """
    try:
        document = await asyncio.to_thread(documents.read, scenario)
    except DocumentDamaged:
        return  # it leads nowhere
    if document is None:
        return
    file = documents.adapter_file(document)
    if any([await server.lost_to_another(document, file) for server in servers]):
        log.warning("document_withdrawn", scenario=scenario, reason="another server answers at the address it names")
        await asyncio.to_thread(documents.remove, scenario)
