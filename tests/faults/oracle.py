"""The oracle: what was issued, what the broker confirmed, what may or may not have arrived, and f(id), what it said.

A batch is known by its scenario and number alone: `records(scenario, number)` makes the same records again at any time,
so that what is stored can be compared byte for byte with what was meant, however much it is. The first broker to say
"confirmed" creates the obligation; a batch whose confirm never came is `attempted`, and may be stored or not.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aio_pika.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError

from tests.integration.foreign_node import Node, body, episode, line

#: What a publish raises that the broker did not confirm; the outcome is unknown then.
UNCONFIRMED = (AMQPError, DeliveryError, ChannelInvalidStateError, OSError, TimeoutError)

#: Records of a batch.
RECORDS = 5

_WORDS = ("plain", "naïve", "数据", "🙂", "tab\\t", "'; DROP TABLE record; --", "%s", "\u2028", '"quoted"')


def chosen_seed() -> int:
    """`SWARM_TEST_SEED` where it is set, to repeat a run; else what pytest-randomly's own seed gives (`-p SEED`)."""
    return int(os.environ.get("SWARM_TEST_SEED") or random.randrange(1 << 32))


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch as it travels; `number` is its id within the scenario."""

    scenario: str
    number: int
    body: bytes


class Oracle:
    """Issues batches and keeps the books. All chance comes from one seed, printed; pytest shows it where a test fails.

    Each batch is an episode of four actions and the end of its session, all with identities of their own. `duplicates`
    is the share of batches that are sent more than once on purpose: the same batch twice, cut off before the confirm
    and sent again under the same identity, or cut anew into batches of another identity with the same records.
    """

    def __init__(self, seed: int, *, duplicates: float = 0.1) -> None:
        print(f"SWARM_TEST_SEED={seed}")  # noqa: T201 - pytest shows it where the test fails
        self.seed = seed
        self.random = random.Random(seed)
        self.duplicates = duplicates
        #: Batches made of each scenario: 0, 1, ... one less than this.
        self.issued: Counter[str] = Counter()
        self.confirmed: defaultdict[str, set[int]] = defaultdict(set)
        #: Sent, and no confirm seen so far.
        self.attempted: dict[tuple[str, int], Sent] = {}
        #: How often what was sent on purpose: `twice`, `cut_off`, `recut`, `resent`.
        self.copies: Counter[str] = Counter()
        self._padding: dict[tuple[str, int], int] = {}
        self._recuts: Counter[str] = Counter()

    def records(self, scenario: str, number: int) -> list[dict[str, Any]]:
        """The records of a batch, always the same; fields in the schema's order, as `export` writes them."""
        chance = random.Random(f"{self.seed}/{scenario}/{number}")
        records = episode(number, success=chance.random() < 0.7)
        padding = "x" * self._padding.get((scenario, number), 0)
        for record in records:
            if record["type"] == "action":
                record["timestamp_ms"] = 1_700_000_000_000 + chance.randrange(1 << 40)
                record["output"] = " ".join(chance.choices(_WORDS, k=chance.randrange(4))) + padding
        return records

    def lines(self, scenario: str, number: int) -> list[bytes]:
        """The batch's records as `export records` must write them."""
        return [line(record) for record in self.records(scenario, number)]

    def all_lines(self, scenario: str) -> Iterator[bytes]:
        """Those of every batch that was issued."""
        for number in range(self.issued[scenario]):
            yield from self.lines(scenario, number)

    def batch(self, scenario: str, *, padding: int = 0) -> Sent:
        """Issue the next batch; `padding` makes each action so many bytes bigger. Nothing is sent yet."""
        number = self.issued[scenario]
        self.issued[scenario] += 1
        if padding:
            self._padding[scenario, number] = padding
        sent = self._made(scenario, number)
        self.attempted[scenario, number] = sent
        return sent

    def _made(self, scenario: str, number: int) -> Sent:
        data = body(
            self.records(scenario, number), producer_id=f"node-{number % 3}", producer_epoch=1, batch_seq=number
        )
        return Sent(scenario, number, data)

    # ------------------------------------------------------------ sending

    def confirm(self, sent: Sent) -> None:
        """The broker has taken it: from now on it must be stored. For whoever publishes on a road of its own."""
        self.confirmed[sent.scenario].add(sent.number)
        self.attempted.pop((sent.scenario, sent.number), None)

    async def publish(self, node: Node, scenario: str, *, padding: int = 0) -> bool:
        """Issue a batch, send it, by chance more than once; False where it was not confirmed and waits for `resend`."""
        sent = self.batch(scenario, padding=padding)
        if self.random.random() >= self.duplicates:
            return await self._send(node, sent)
        kind = self.random.choice(("twice", "cut_off", "recut"))
        self.copies[kind] += 1
        match kind:
            case "twice":
                return await self._send(node, sent, times=2)
            case "cut_off":
                # The node dies before it hears the confirm: the broker may have the message or not.
                first = asyncio.create_task(node.publish(scenario, sent.body))
                await asyncio.sleep(0)
                first.cancel()
                await asyncio.wait([first])
                return await self._send(node, sent)
            case _:
                return await self._send(node, sent) and await self._send_recut(node, sent)

    async def resend(self, node: Node) -> int:
        """Send what was never confirmed, each under its own identity; how many. Raises where it fails again."""
        unsure = [*self.attempted.values()]
        for sent in unsure:
            await node.publish(sent.scenario, sent.body)
            self.confirm(sent)
        self.copies["resent"] += len(unsure)
        return len(unsure)

    async def publish_many(self, node: Node, scenarios: Sequence[str], number: int) -> None:
        """So many batches of each scenario, side by side."""
        await asyncio.gather(*(self.publish(node, name) for name in scenarios for _ in range(number)))

    async def load(
        self, node: Node, scenarios: Sequence[str], stopping: asyncio.Event, *, pace: float = 0.02, at_once: int = 1
    ) -> None:
        """So many batches of each scenario every `pace` seconds until told to stop: something is always under way."""
        while not stopping.is_set():
            await self.publish_many(node, scenarios, at_once)
            await asyncio.sleep(pace)  # the pace, not a wait for anything

    async def _send(self, node: Node, sent: Sent, *, times: int = 1) -> bool:
        try:
            await node.publish(sent.scenario, sent.body, times=times)
        except UNCONFIRMED:
            return False
        self.confirm(sent)
        return True

    async def _send_recut(self, node: Node, sent: Sent) -> bool:
        """The same records once more, in two batches of a producer that lost its counter and cut them differently."""
        records = self.records(sent.scenario, sent.number)
        cut = self.random.randrange(1, len(records))
        for part in (records[cut:], records[:cut]):
            seq = self._recuts[sent.scenario]
            self._recuts[sent.scenario] += 1
            try:
                await node.publish(
                    sent.scenario, body(part, producer_id="recut", producer_epoch=self.seed, batch_seq=seq)
                )
            except UNCONFIRMED:
                return False  # the records themselves are confirmed already
        return True
