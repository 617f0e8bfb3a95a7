"""Context: a pool made for two sequences of the longest length that the model takes, where users never come near it."""

from __future__ import annotations

from ....cache import PAGE
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

TIMES = 2    # what is reserved, over what is needed
LEAST = 0.1  # of the free memory: less is not worth a word
RESERVED = Disorder("context_reserved", "warning", "the key-value cache is reserved for far longer contexts than users have",
                    "bound the length of a sequence, which bounds the pool")


def look(case: Case) -> Answer:
    said, plans, found = case.complaint, case.plans, case.holders
    if said.context is None:
        raise NotAskedError("say with --context how long prompt and answer are together")
    line = f"a sequence may have {plans.max_model_len} tokens, {said.context} are used; "
    line += f"{found.pool / 1e6:.1f} MB are reserved, {found.needed / 1e6:.1f} MB needed"
    large = found.pool > LEAST * case.surroundings.machine.memory_available
    if plans.max_model_len < TIMES * said.context or found.pool < TIMES * found.needed or not large:
        return Answer(line)
    length = -(-said.context // PAGE) * PAGE
    megabytes = -(-found.needed * 5 // 4 // 1_000_000)
    return Answer(line, (RESERVED("--max-model-len", line, case.command(max_model_len=length, kv_memory_mb=megabytes)),))


CAUSE = Cause(50, "is it reserved for contexts that nobody has?", look, (RESERVED,))
