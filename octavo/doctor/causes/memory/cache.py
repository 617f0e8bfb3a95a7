"""Cache: keys and values of all users' contexts."""

from __future__ import annotations

from ....schemes import cache_pairs
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

LARGE = 0.3  # of what the model brings
WIDE = Disorder("cache_unquantized", "warning", "a key-value cache in 16 bits and more holds much of the memory",
                "8 bits for the cache: half of it, at next to no loss")
FULL = Disorder("cache_fills_memory", "warning", "the key-value cache of so many users with so long contexts holds most of the memory",
                "fewer users at a time (--max-batch), shorter contexts, or fewer bits for the cache")


def look(case: Case) -> Answer:
    found, plans, said = case.holders, case.plans, case.complaint
    share, each = found.share("key-value cache"), plans.report.kv_bytes_per_token
    context = min(said.context or plans.max_model_len, plans.max_model_len)
    line = f"{said.users} users x {context} tokens x {each / 1e3:.2f} kB = {found.needed / 1e6:.1f} MB, {share:.0%} of what the model brings"
    if share < LARGE:
        return Answer(line)
    layers = len(plans.origin.model.kv_heads)
    if not any(half.quantized for pair in cache_pairs(plans.cache_spec, layers) for half in pair):
        smaller = case.foresee(case.model, quantization=said.quantization, kv_cache="int8").report.kv_bytes_per_token
        return Answer(line, (WIDE(plans.cache_spec.format, f"{line}; in 8 bits {found.needed * smaller / each / 1e6:.1f} MB", case.command(kv_cache="int8")),))
    return Answer(line, (FULL("", line, case.command(max_batch=max(1, said.users // 2))),) if share > 2 * LARGE else ())


CAUSE = Cause(40, "does the key-value cache hold it?", look, (WIDE, FULL))
