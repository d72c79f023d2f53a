"""Power cuts on paper: from a trace of system calls, every disk that a cut could have left, and what is on it.

kill -9 does not test durability: the page cache survives it. This follows which bytes and names a program had synced at
each moment and what was only in the cache, as SQLite's own crash tests do from below (test6.c: writes that were not
synced are dropped, or a random part of them kept).
"""
