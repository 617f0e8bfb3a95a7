"""Cache: what the bits of the key-value cache cost, by the same weights with a 16-bit cache."""

from __future__ import annotations

import copy

from ....quality import compare
from ....schemes import TensorSpec, cache_pairs
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

LIMIT = 0.01  # nats per token
NARROW = Disorder("cache_too_narrow", "error", "the key-value cache has too few bits for this model",
                  "more bits for the cache, or auto: more for the layers that need them")


def look(case: Case) -> Answer:
    loaded = case.loaded
    pairs = cache_pairs(loaded.cache_spec, len(loaded.kv_heads))
    if not any(half.quantized for pair in pairs for half in pair):
        raise NotAskedError("the key-value cache is not quantized")
    wide = copy.copy(loaded)
    wide.cache_spec = TensorSpec("bf16")
    wide = wide.twin(case.complaint.threads)
    kl = compare(wide, loaded, case.windows).kl.value
    line = f"against a 16-bit cache: KL {kl:.4g} nats per token"
    if kl <= LIMIT:
        return Answer(line)
    least = min(half.bits for pair in pairs for half in pair)
    wider = "int8" if least < 8 else "bf16"
    return Answer(line, (NARROW(f"cache of {least} bits", f"{line} on {len(case.windows.tokens)} windows of {case.windows.tokens.shape[1]} tokens",
                                case.command(kv_cache=wider)),))


CAUSE = Cause(70, "does the key-value cache have enough bits?", look, (NARROW,), unless=("no_numbers",))
