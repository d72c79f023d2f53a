"""Whether a training process that did not finish is started again, to go on from its checkpoint on the same data. Pure.

By the kernel for want of memory, by an operator, or by us at its time limit, where the steps that are left fit into the
starts that are; and where its converter failed, with all steps made. Not for ever, since what ends it may be the
training itself.
"""

from __future__ import annotations

import os
import re
from typing import Final

from worker.training.child import TrainingStep

#: Starts of one run whose process is killed, or reaches its time limit, each time.
MOST_STARTS: Final = 3
#: Statuses above it are a shell's for a command that a signal ended: 137 for SIGKILL.
_BY_SIGNAL: Final = 128


def goes_on(
    reason: str, *, starts: int, timeout: float, step: TrainingStep | None, launched: bool, checkpoint: bool
) -> bool:
    """`reason` as in `Died`, after so many `starts` of at most `timeout` seconds; `step` is how far it had come.

    `launched`: a launcher stood between, and tells of a killed training by a status of its own: `sh -c` by 128 + the
    signal, torchrun 2.13 by 1, as of any other end; then a `checkpoint` that is there says that it had been at work.
    """
    if starts >= MOST_STARTS:
        return False
    if reason == "timeout":
        return step is not None and step.seconds_left <= (MOST_STARTS - starts) * timeout
    if reason == "not_converted":
        return True
    status = re.fullmatch(r"exit:(\d+)", reason)
    if status is None or not launched:
        return reason.startswith("signal:")
    # A setting that is wrong is as wrong at the next start.
    return int(status[1]) > _BY_SIGNAL or (checkpoint and int(status[1]) != os.EX_CONFIG)
