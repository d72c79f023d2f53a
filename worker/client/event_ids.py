"""Event ids by the original's layout, `(tick << 24) | (worker << 8) | sequence`, with every overflow an error.

The original let the 257th event of a worker in a tick, and worker ids above 65,535, collide silently. Here
an id that cannot be made is refused at the sender.
"""

from __future__ import annotations

from collections import OrderedDict

from worker.errors import InvalidRecord

_SEQUENCE_BITS = 8
_WORKER_BITS = 16
MAX_SEQUENCE = (1 << _SEQUENCE_BITS) - 1
MAX_WORKER = (1 << _WORKER_BITS) - 1
#: What is left of a signed 64-bit integer.
MAX_TICK = (1 << (63 - _WORKER_BITS - _SEQUENCE_BITS)) - 1
#: Ticks remembered over all tasks and workers, the least recently used forgotten first.
_REMEMBERED = 65_536


def event_id(tick: int, worker_id: int, sequence: int) -> int:
    """The id of the event number `sequence` (0-255) of a worker in a tick. Raises `InvalidRecord`."""
    for name, value, most in (
        ("tick", tick, MAX_TICK), ("worker_id", worker_id, MAX_WORKER), ("sequence", sequence, MAX_SEQUENCE),
    ):  # fmt: skip
        if not 0 <= value <= most:
            raise InvalidRecord(f"an event id holds a {name} from 0 to {most}, not {value}")
    return tick << (_WORKER_BITS + _SEQUENCE_BITS) | worker_id << _SEQUENCE_BITS | sequence


def split_event_id(id_: int) -> tuple[int, int, int]:
    """Tick, worker id and sequence of an id."""
    return id_ >> (_WORKER_BITS + _SEQUENCE_BITS), id_ >> _SEQUENCE_BITS & MAX_WORKER, id_ & MAX_SEQUENCE


class EventSequences:
    """Gives each event its number within its task, worker and tick.

    Ids are unique within a task, which is all that the worker asks for (`(task_id, event_id)`). Numbers live in memory:
    a process that is restarted in the middle of a tick must go on with the next tick or a new task.
    """

    def __init__(self) -> None:
        self._next: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def next_id(self, task_id: str, tick: int, worker_id: int) -> int:
        """The next id; raises `InvalidRecord` for the 257th event of one worker in one tick."""
        key = (task_id, worker_id, tick)
        sequence = self._next.get(key, 0)
        if sequence > MAX_SEQUENCE:
            raise InvalidRecord(
                f"worker {worker_id} has {MAX_SEQUENCE + 1} events in tick {tick} of task {task_id!r} already, and an "
                "event id has room for no more; count a tick on"
            )
        made = event_id(tick, worker_id, sequence)
        self._next[key] = sequence + 1
        self._next.move_to_end(key)
        if len(self._next) > _REMEMBERED:
            self._next.popitem(last=False)
        return made
