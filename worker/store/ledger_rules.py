"""What every ledger refuses, and in which words: one place, so that no two stores differ."""

from __future__ import annotations

from worker.errors import DataRefused, LeaseLost, NotFound, Overtaken
from worker.store.port import Deployment, Model, Run, StoredCommand, TriggerState, trigger_key

ENDED = frozenset({"trained", "failed", "skipped"})

#: Of commands that have ended, so many of the newest are kept, and all of this many milliseconds: twice what a command
#: can live in a queue (15 min), so that whatever comes again is known. It bounds what a flood of commands leaves.
COMMANDS_KEPT = 10_000
COMMANDS_KEPT_MS = 30 * 60 * 1000


def check_new_run(run: Run) -> None:
    """Only a queued run is created: the others are made of it by `start_run` and `finish_run`."""
    if run.state != "queued":
        raise DataRefused(f"run {run.run_id}: state is {run.state!r}, but a run begins as 'queued'")


def check_startable(run_id: str, stored: Run | None) -> Run:
    """The stored run, which has not ended."""
    if stored is None:
        raise NotFound(f"there is no run {run_id}")
    if stored.state in ENDED:
        raise DataRefused(f"run {run_id} has ended as {stored.state!r}; create a run with another run_id and nonce")
    return stored


def check_alone(run_id: str, running: Run | None) -> None:
    """One run of a scenario runs at a time; `running` is the other one."""
    if running is not None:
        raise DataRefused(
            f"run {run_id} cannot start while run {running.run_id} of scenario {running.scenario} is running "
            f"(epoch {running.epoch}); take that one over or end it first"
        )


def check_owned(run_id: str, stored: Run | None, *, epoch: int, lease_epoch: int | None) -> Run:
    """The stored run, which is running and owned under `epoch`; anything else is `LeaseLost`."""
    if stored is None:
        raise NotFound(f"there is no run {run_id}")
    if stored.state != "running" or stored.epoch != epoch or lease_epoch != epoch:
        raise LeaseLost(
            f"run {run_id} is not ours under epoch {epoch}: it is {stored.state!r} under epoch {stored.epoch}, "
            f"the lease has epoch {lease_epoch}; drop what was computed"
        )
    return stored


def check_lease(lease: str, *, held: bool, epoch: int) -> None:
    """`LeaseLost` where the caller's epoch is not the lease's own."""
    if not held:
        raise LeaseLost(f"lease {lease} is not ours under epoch {epoch}; acquire it again")


def check_end(run: Run) -> int:
    """When the run ended, Unix ms; `DataRefused` where `run` is not the end of one."""
    if run.state not in ENDED or run.ended_at_ms is None:
        raise DataRefused(
            f"run {run.run_id}: state {run.state!r} with ended_at_ms {run.ended_at_ms} is no end; "
            f"give it one of {', '.join(sorted(ENDED))} and the time"
        )
    return run.ended_at_ms


def check_belongs(run: Run, model: Model | None, trigger_state: TriggerState | None) -> None:
    """What an end of a run writes beside it is about that run and its scenario."""
    if model is not None and (model.scenario, model.run_id, model.kind) != (run.scenario, run.run_id, run.kind):
        raise DataRefused(
            f"model {model.model_id} names run {model.run_id} ({model.kind}) of scenario {model.scenario}, but it is "
            f"run {run.run_id} ({run.kind}) of scenario {run.scenario} that ends; give the model the run's own"
        )
    if trigger_state is not None and trigger_state.scenario != trigger_key(run.scenario, run.kind):
        raise DataRefused(
            f"run {run.run_id} of scenario {run.scenario} cannot move the trigger of scenario {trigger_state.scenario}"
        )


def check_new_model(model: Model, *, known: Model | None, newest_version: int) -> None:
    """Versions of a scenario are 1, 2, 3, ... and a model is never written twice."""
    if known is not None:
        raise DataRefused(
            f"model {model.model_id} is registered already as version {known.version} of scenario {known.scenario}; "
            "the run learnt nothing new, end it as 'skipped'"
        )
    if model.version != newest_version + 1:
        raise DataRefused(
            f"model {model.model_id}: version {model.version} of scenario {model.scenario} cannot be registered, "
            f"the next is {newest_version + 1}"
        )


def check_model_of(scenario: str, model_id: str, known: Model | None) -> Model:
    """Deployments and aliases of a scenario point at models of that scenario."""
    if known is None or known.scenario != scenario:
        raise NotFound(f"scenario {scenario} has no model {model_id}; `swarm-worker models` lists what there is")
    return known


def changes_state(stored: Deployment, new: Deployment) -> bool:
    """Whether `new` moves the stored deployment on. False: it is a repetition, which has no effect."""
    if (stored.scenario, stored.model_id, stored.action) != (new.scenario, new.model_id, new.action):
        raise DataRefused(
            f"deployment {new.deployment_id} is the {stored.action} of model {stored.model_id} in scenario "
            f"{stored.scenario}; another one needs an id of its own"
        )
    if stored.state == new.state:
        return new.state == "started" and stored.given_up_by == "" != new.given_up_by
    if stored.state != "started":
        raise Overtaken(
            f"deployment {new.deployment_id} has ended as {stored.state!r} and cannot become {new.state!r}; "
            "the log only grows, append a deployment of its own"
        )
    return True


def check_after(new: Deployment, after: str | None, newest: str | None) -> None:
    """A deployment begins only where the log of its kind is as it was when this was decided."""
    if newest != after:
        raise Overtaken(
            f"deployment {new.deployment_id} of scenario {new.scenario} was to come after {after or 'none'}, and "
            f"another worker's came before it: {newest or 'none'} is the newest; read the log again"
        )


def counts_as_applied(deployment: Deployment) -> bool:
    """What `models_applied` counts: an apply that was verified, never a rollback (the original's)."""
    return deployment.action == "apply" and deployment.state == "verified"


def check_command(command_id: str, stored: StoredCommand | None) -> StoredCommand:
    """The stored command; only one that was accepted can end."""
    if stored is None:
        raise NotFound(f"there is no command {command_id}; accept it before it ends")
    return stored
