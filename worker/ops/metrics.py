"""Prometheus metrics, made of the worker's status at scrape time: one truth, and nothing to pay on the hot path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Rows: TypeAlias = tuple[tuple[str, str, str], ...]
Family: TypeAlias = type[CounterMetricFamily] | type[GaugeMetricFamily]

#: Metric, key in the scenario's status (a dot leads into it), help.
#: Counters are the store's, so a restart does not reset them.
_SCENARIO_COUNTERS = (
    ("swarm_records", "records_received", "Records stored."),
    ("swarm_batches", "batches", "Batches stored."),
    ("swarm_duplicate_batches", "duplicate_batches", "Batches that had been stored before."),
    ("swarm_duplicate_records", "duplicate_records", "Records that had been stored before."),
    ("swarm_quarantined", "quarantined", "Messages and records put into quarantine."),
    ("swarm_unknown_fields", "unknown_fields", "Fields that nobody knows, ignored."),
    ("swarm_sessions", "sessions", "Sessions ended."),
    ("swarm_trainings_completed", "trainings_completed", "Trainings that gave a model."),
    ("swarm_models_applied", "models_applied", "Models applied and verified."),
    ("swarm_trigger_errors", "trigger_errors", "Trigger evaluations that failed."),
)
_SCENARIO_GAUGES = (
    ("swarm_episodes", "episodes_created", "Episodes."),
    ("swarm_open_tasks", "open_tasks", "Tasks with records that no projection has taken yet."),
    ("swarm_queue_messages", "queue_depth", "Messages ready in the records queue."),
    ("swarm_consumer_up", "consumer_up", "1 while the consumer is registered."),
    ("swarm_training_running", "training_running", "1 while a training runs."),
    ("swarm_training_failures", "training_failures", "Failed runs in a row."),
    ("swarm_training_progress", "training.progress", "How far the training that runs is, 0-1."),
    ("swarm_training_step", "training.step", "Optimiser steps done of the adapter that is trained."),
    ("swarm_training_steps", "training.steps", "Optimiser steps of its whole training."),
    ("swarm_training_loss", "training.loss", "Mean loss of the last step."),
    ("swarm_training_left_seconds", "training.seconds_left", "How long its steps will still take, at their pace."),
    ("swarm_adapter_training_failures", "adapter_training_failures", "Failed trainings of adapters in a row."),
    ("swarm_adapter_version", "adapter.version", "Version of the live adapter."),
    ("swarm_adapter_served", "adapter.served", "0 while the live adapter was seen not to be served, else 1."),
)
_WORKER_COUNTERS = (
    ("swarm_groups", "groups", "Transactions of the sink."),
    ("swarm_commit_seconds", "commit_seconds", "Seconds spent in the sink's transactions."),
    ("swarm_messages", "messages", "Messages taken from the queues."),
    ("swarm_suspects", "suspects", "Messages handled alone, since the broker had taken them back three times or more."),
    ("swarm_stale_deliveries", "stale", "Deliveries dropped because their channel was gone."),
    (
        "swarm_quarantine_moved",
        "quarantine_moved",
        "Quarantine entries moved out into files.",
    ),
    ("swarm_quarantine_deleted", "quarantine_deleted", "Quarantine entries whose file is gone."),
    ("swarm_events_sent", "events_sent", "Events confirmed by the broker."),
    ("swarm_events_failed", "events_failed", "Attempts to send an event that failed."),
    ("swarm_projection_faults", "projection_faults", "Learn models and counts that failed on an item."),
    ("swarm_commands_accepted", "commands_accepted", "Commands accepted."),
    ("swarm_commands_refused", "commands_refused", "Commands refused: forged, stale, misdirected, too many."),
    ("swarm_reconnects", "reconnects", "Broker sessions opened again."),
)
_WORKER_GAUGES = (
    ("swarm_ready", "ready", "1 while the worker is ready."),
    ("swarm_damaged_rows", "damaged_rows", "Rows of the store found damaged, and set aside."),
    ("swarm_store_up", "store_up", "1 while the store takes writes."),
    ("swarm_quarantine_entries", "quarantine_entries", "Entries in quarantine."),
    ("swarm_quarantine_bytes", "quarantine_bytes", "Bytes in quarantine, bounded by SWARM_QUARANTINE_BYTES."),
    ("swarm_quarantine_file_bytes", "quarantine_file_bytes", "Bytes of the files that entries moved out into."),
    ("swarm_in_flight_messages", "in_flight", "Messages taken and not settled."),
    ("swarm_journal_up", "journal_up", "1 unless swarm.learning.journal was found down when an event was to be sent."),
    ("swarm_outbox_waiting", "outbox_waiting", "Events not confirmed yet."),
    ("swarm_outbox_oldest_seconds", "outbox_oldest_seconds", "Age of the oldest event not confirmed yet."),
    ("swarm_projection_lag_seconds", "projection_lag_seconds", "How far the projector is behind the log."),
    ("swarm_started_at_seconds", "started_at_seconds", "When the worker started, Unix seconds."),
)


class StatusCollector(Collector):
    """Turns the newest status into metric families."""

    def __init__(self) -> None:
        self.status: Mapping[str, Any] = {}

    def collect(self) -> Iterable[Metric]:
        """Prometheus asks; the status answers."""
        scenarios: Mapping[str, Mapping[str, Any]] = self.status.get("scenarios", {})
        worker: Mapping[str, Any] = self.status.get("counters", {})
        yield from _per_scenario(CounterMetricFamily, _SCENARIO_COUNTERS, scenarios)
        yield from _per_scenario(GaugeMetricFamily, _SCENARIO_GAUGES, scenarios)
        yield from _of_worker(CounterMetricFamily, _WORKER_COUNTERS, worker)
        yield from _of_worker(GaugeMetricFamily, _WORKER_GAUGES, worker)


def _per_scenario(family: Family, rows: Rows, scenarios: Mapping[str, Mapping[str, Any]]) -> Iterable[Metric]:
    for name, key, text in rows:
        metric = family(name, text, labels=["scenario"])
        for scenario, values in scenarios.items():
            value: Any = values
            for part in key.split("."):
                value = None if value is None else value.get(part)
            if value is not None:
                metric.add_metric([scenario], float(value))
        yield metric


def _of_worker(family: Family, rows: Rows, values: Mapping[str, Any]) -> Iterable[Metric]:
    for name, key, text in rows:
        if values.get(key) is not None:
            yield family(name, text, value=float(values[key]))


def make_registry() -> tuple[CollectorRegistry, StatusCollector]:
    """A registry of the worker's own, so that two workers in one process (tests) do not share one."""
    registry = CollectorRegistry()
    collector = StatusCollector()
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry, collector
