"""What the deployment log says: which models were live one after the other, and which comes back on a rollback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from worker.store.port import Deployment, ModelKind, ModelRegistry

#: Rows of the deployment log that history is read from.
_LOG_ROWS = 1_000


class LiveHistory:
    """Of all scenarios, read from the store each time."""

    def __init__(self, store: ModelRegistry, *, depth: int) -> None:
        """`depth`: how many models may come back, beside the live one."""
        self._store = store
        self.depth = depth

    async def rows(self, scenario: str, kind: ModelKind | None = None) -> list[Deployment]:
        """The newest deployments first; of models of one kind, or of all."""
        return await self._store.deployments(scenario, kind=kind, limit=_LOG_ROWS)

    async def ids(self, scenario: str, kind: ModelKind) -> list[str]:
        """Ids of models of one kind, the live one first, then those a rollback may bring back."""
        return live_models(await self.rows(scenario, kind), depth=self.depth)


def live_models(newest_first: Sequence[Deployment], *, depth: int) -> list[str]:
    """Ids of the models that may be live again by rollback, the live one first, at most `depth` + 1 of them.

    An apply puts a model on top, a rollback takes models off until its target is on top (the original's `history`,
    trimmed to `max_history` at each apply: the files of what falls off are removed). Only verified deployments count.
    """
    stack: list[str] = []
    for deployment in reversed(newest_first):
        if deployment.state != "verified":
            continue
        if deployment.action == "rollback" and deployment.model_id in stack:
            while stack[-1] != deployment.model_id:
                stack.pop()
        elif not stack or stack[-1] != deployment.model_id:
            stack.append(deployment.model_id)
            del stack[: -depth - 1]
    return stack[::-1]


def unfinished(newest_first: Iterable[Deployment]) -> list[Deployment]:
    """Deployments that a crash left `started`, oldest first."""
    return [deployment for deployment in newest_first if deployment.state == "started"][::-1]


def ended_after(deployment: Deployment, newest_first: Iterable[Deployment]) -> Deployment | None:
    """The newest deployment that began after this one and has ended, of rows of one kind."""
    for row in newest_first:
        if row.deployment_id == deployment.deployment_id:
            return None
        if row.state != "started":
            return row
    return None
