"""What the worker declares, and how it takes what is there already."""

from __future__ import annotations

import pytest

from tests.integration.conftest import NewSession
from worker.broker.session import Session
from worker.broker.topology import (
    Queue,
    dead_queue,
    ensure_topology,
    jobs_queue,
    records_queue,
    scenario_objects,
    service_objects,
    shared_objects,
    worker_objects,
)
from worker.errors import BrokerRefused

pytestmark = pytest.mark.rabbitmq


async def _publish(session: Session, exchange: str, key: str, body: bytes) -> None:
    channel = await session.open_channel(confirms=True)
    await channel.basic_publish(body, exchange=exchange, routing_key=key, mandatory=True, timeout=5)
    await channel.close()


async def test_everything_can_be_declared_twice(new_session: NewSession, scenario: str) -> None:
    session = await new_session()
    objects = [
        *shared_objects(),
        *scenario_objects(scenario),
        *worker_objects("w1", "b1", [scenario]),
        *service_objects("trainer-ui", ["learning.#"]),
    ]
    for _ in range(2):
        await ensure_topology(session, objects, "auto")
    await ensure_topology(session, objects, "passive")


@pytest.mark.parametrize("form", ["{}", "{}.tau.airline", "swarm.records.{}"])
async def test_records_reach_their_queue_by_every_documented_key(
    new_session: NewSession, scenario: str, form: str
) -> None:
    session = await new_session()
    await ensure_topology(session, [*shared_objects(), *scenario_objects(scenario)], "auto")
    await _publish(session, "swarm.records", form.format(scenario), b"x")
    await _publish(session, "", records_queue(scenario), b"y")
    channel = await session.open_channel()
    bodies = [(await channel.basic_get(records_queue(scenario), no_ack=True)).body for _ in range(2)]
    assert sorted(bodies) == [b"x", b"y"]


async def test_an_unequal_queue_is_refused_by_name_with_the_argument_and_the_cure(
    new_session: NewSession, scenario: str
) -> None:
    session = await new_session()
    channel = await session.open_channel()
    await ensure_topology(session, shared_objects(), "auto")
    records = next(item for item in scenario_objects(scenario) if item.name == records_queue(scenario))
    assert isinstance(records, Queue)
    other = {**records.arguments, "x-delivery-limit": 6}
    await channel.queue_declare(records.name, durable=True, arguments=other)
    with pytest.raises(BrokerRefused) as refused:
        await ensure_topology(session, scenario_objects(scenario), "auto")
    for part in (records_queue(scenario), "x-delivery-limit", "received", "SWARM_TOPOLOGY=passive"):
        assert part in str(refused.value)
    assert session.connected, "a refusal closes a channel, not the connection"


async def test_passive_names_what_is_missing_and_makes_nothing(new_session: NewSession, scenario: str) -> None:
    session = await new_session()
    for _ in range(2):
        with pytest.raises(BrokerRefused, match=dead_queue(scenario)):
            await ensure_topology(session, scenario_objects(scenario), "passive")


async def test_passive_takes_an_unequal_queue_as_it_is(new_session: NewSession, scenario: str) -> None:
    """Somebody who owns the topology may have reasons."""
    session = await new_session()
    channel = await session.open_channel()
    for item in scenario_objects(scenario):
        await channel.queue_declare(item.name, durable=True)
    await ensure_topology(session, scenario_objects(scenario), "passive")


async def test_dead_letters_have_a_place_before_anything_can_die(new_session: NewSession, scenario: str) -> None:
    names = [item.name for item in scenario_objects(scenario)]
    assert names.index(dead_queue(scenario)) < min(
        names.index(records_queue(scenario)), names.index(jobs_queue(scenario))
    )
    for item in scenario_objects(scenario):
        assert isinstance(item, Queue)
        assert item.arguments["x-delivery-limit"] > 0, "-1 drops at the first return on 3.10, none means 20 on 4.x"


async def test_a_rejected_record_is_dead_lettered_at_once(new_session: NewSession, scenario: str) -> None:
    session = await new_session()
    await ensure_topology(session, [*shared_objects(), *scenario_objects(scenario)], "auto")
    await _publish(session, "swarm.records", scenario, b"poison")
    channel = await session.open_channel()
    message = await channel.basic_get(records_queue(scenario))
    await channel.basic_reject(message.delivery_tag or 0, requeue=False)
    for _ in range(100):
        dead = await channel.basic_get(dead_queue(scenario), no_ack=True)
        if dead.body:
            break
    assert dead.body == b"poison"
    headers = dead.header.properties.headers or {}
    assert "x-death" in headers
