"""What a training that failed was short of, by whatever name a library gives it: memory, or room on the disk."""

from __future__ import annotations

import errno

from worker.durable import NO_ROOM


def is_disk_full(error: Exception) -> bool:
    """Whether it is that, or a quota, by any name: safetensors has an error of its own for it."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is one, by any name: in the middle of loading torch it is an ImportError or a thread's."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("failed to map segment", "Cannot allocate memory", "can't start new thread", "can't allocate memory")
    return any(each in str(error) for each in (*words, "not enough memory", "out of memory"))
