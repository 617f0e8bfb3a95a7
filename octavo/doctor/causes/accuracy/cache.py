"""Cache: what the bits of the key-value cache cost, by the same weights with a 16-bit cache.

Inputs of 16 bits on both sides: rounded ones would be rounded otherwise after the smallest change, and that noise is a hundredth of a nat in small models.
"""

from __future__ import annotations

import copy

from ....quality import compare
from ....schemes import cache_pairs
from ...case import Case, wide
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
    truth = wide(case.exact_inputs)
    kl = compare(truth, case.exact_inputs, case.windows).kl.value
    line = f"against a 16-bit cache: KL {kl:.4g} nats per token"
    if kl <= LIMIT:
        return Answer(line)
    least = min(half.bits for pair in pairs for half in pair)
    evidence, wider = f"{line} on {len(case.windows.tokens)} windows of {case.windows.tokens.shape[1]} tokens", "bf16"
    if least < 8:
        middle = copy.copy(truth)
        middle.cache_spec = case.foresee(case.model, quantization=case.complaint.quantization, kv_cache="int8").cache_spec
        enough = compare(truth, middle.twin(case.complaint.threads), case.windows).kl.value
        evidence += f"; with 8 bits {enough:.4g}"
        wider = "int8" if enough <= LIMIT else wider
    return Answer(line, (NARROW(f"cache of {least} bits", evidence, case.command(kv_cache=wider)),))


CAUSE = Cause(70, "does the key-value cache have enough bits?", look, (NARROW,), unless=("no_numbers",))
