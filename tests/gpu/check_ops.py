"""The recorded forward with longer steps and more precisions than test_ops.py has time for (make test-triton)."""

from __future__ import annotations

from typing import Any

import pytest
from kernels.test_native import CACHES, prompt, step_of

from gpu import test_attention as attention
from gpu import test_ops as ops
from octavo.kernels.reference import ReferenceOps
from octavo.kernels.triton.ops import TritonOps

STEPS = [step_of([(prompt(37), 0, [3, 7]), (prompt(2, 1), 0, [2])]), step_of([(prompt(9, 2), 37, [3, 7]), ([4], 2, [2]), ([1], 0, [9])])]
KINDS: list[dict[str, Any]] = [
    {}, {"heads": 8, "kv_heads": 2, "dim": 16, "window": 7}, {"heads": 6, "kv_heads": 1, "dim": 80, "gate": "gelu"}, {"weight": "bf16", "act": "bf16"},
    {"weight": "4g32", "act": "bf16"}, {"weight": "nf4", "act": "bf16"}, {"weight": "8", "act": "int8"}, {"weight": "4g32", "act": "int8"},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: " ".join(f"{a}={b}" for a, b in k.items()) or "plain")
def test_logits(kind: dict[str, Any]) -> None:
    for a, b in zip(ops.run(TritonOps(), STEPS, **kind), ops.run(ReferenceOps(), STEPS, **kind), strict=True):
        ops.close(a, b, 2e-5 if "act" not in kind else 4e-2)


@pytest.mark.parametrize("cache", list(CACHES))
def test_caches(cache: str) -> None:
    for a, b in zip(ops.run(TritonOps(), STEPS, cache), ops.run(ReferenceOps(), STEPS, cache), strict=True):
        ops.close(a, b, 2e-5 if cache == "fp32" else 4e-3)


@pytest.mark.parametrize("dim", [24, 64, 128])
@pytest.mark.parametrize("name", list(attention.FOUR))
def test_four_bit_caches(name: str, dim: int) -> None:
    for balanced in (False, True):
        attention.four_bits(name, dim, balanced, attention.STEPS)
