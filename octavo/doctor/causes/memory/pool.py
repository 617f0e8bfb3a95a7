"""Pool: too small a key-value cache does not end in an error: sequences are put aside and computed again, and answers get slow."""

from __future__ import annotations

from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

SMALL = Disorder("pool_too_small", "warning", "the key-value cache has no room for so many users: some wait, or are put aside and computed again",
                 "more memory for it, fewer bits, or fewer users at a time")


def look(case: Case) -> Answer:
    found = case.holders
    line = f"the pool has {found.pool / 1e6:.1f} MB, users fill {found.needed / 1e6:.1f} MB"
    if found.pool >= found.needed:
        return Answer(f"yes: {line}")
    return Answer(f"no: {line}", (SMALL("--kv-memory-mb", line, case.command(kv_memory_mb=-(-found.needed // 1_000_000))),))


CAUSE = Cause(80, "has the cache room for all users?", look, (SMALL,))
