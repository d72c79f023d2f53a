"""Metrics are the status in Prometheus' words."""

from __future__ import annotations

from prometheus_client.exposition import generate_latest

from worker.ops.metrics import make_registry

STATUS = {
    "counters": {"ready": 1, "messages": 7, "outbox_waiting": 2},
    "scenarios": {
        "a": {"records_received": 100, "queue_depth": 3, "consumer_up": 1},
        "b": {"records_received": 5, "queue_depth": None, "consumer_up": 0},
    },
}


def test_each_scenario_has_its_own_series() -> None:
    """What is not known (a queue nobody asked about yet) is left out rather than shown as zero."""
    registry, collector = make_registry()
    collector.status = STATUS
    text = generate_latest(registry).decode()
    assert 'swarm_records_total{scenario="a"} 100.0' in text
    assert 'swarm_records_total{scenario="b"} 5.0' in text
    assert 'swarm_queue_messages{scenario="a"} 3.0' in text
    assert 'swarm_queue_messages{scenario="b"}' not in text
    assert "swarm_messages_total 7.0" in text
    assert "swarm_outbox_waiting 2.0" in text


def test_two_workers_in_one_process_do_not_share_metrics() -> None:
    first, collector = make_registry()
    second, _ = make_registry()
    collector.status = STATUS
    assert b"swarm_messages_total 7.0" in generate_latest(first)
    assert b"swarm_messages_total 7.0" not in generate_latest(second)


def test_a_training_in_steps_is_told_while_it_runs() -> None:
    """Its step, its loss and what is left; nothing of a scenario that trains nothing."""
    registry, collector = make_registry()
    training = {"progress": 0.5, "step": 12, "steps": 40, "loss": 0.75, "seconds_left": 90.0}
    adapter = {"version": 3, "served": 0}
    collector.status = {"scenarios": {"a": {"training": training, "adapter": adapter}, "b": {"training": None}}}
    text = generate_latest(registry).decode()
    for name, value in (
        ("progress", 0.5), ("step", 12.0), ("steps", 40.0), ("loss", 0.75), ("left_seconds", 90.0),
    ):  # fmt: skip
        assert f'swarm_training_{name}{{scenario="a"}} {value}' in text
        assert f'swarm_training_{name}{{scenario="b"}}' not in text
    assert 'swarm_adapter_version{scenario="a"} 3.0' in text
    assert 'swarm_adapter_served{scenario="a"} 0.0' in text
    assert 'swarm_adapter_served{scenario="b"}' not in text
