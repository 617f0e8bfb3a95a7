"""Sequences that begin with the same pages attend together, and get the very bits that each gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from octavo.cache import PAGE, Step
from octavo.kernels.native import NativeOps

from .test_native import CACHES, ISAS, prompt, run, step_of

Part = tuple[list[int], int, list[int]]


def conversations(pages: list[int], own: list[int], seed: int = 0) -> tuple[list[Step], list[Part], int]:
    """Steps that fill the cache for sequences which share `pages[i]` whole pages with the first and have `own[i]` tokens of their own; then
    one decoded token of each as parts of a step; and the number of pages."""
    longest, free = max(pages), max(pages)
    first = prompt(longest * PAGE, seed)
    fill, decode = [step_of([(first, 0, list(range(longest)))])], []
    for i, (shared, mine) in enumerate(zip(pages, own, strict=True)):
        table = list(range(shared))
        while len(table) * PAGE <= shared * PAGE + mine:
            table.append(free)
            free += 1
        if mine:
            fill.append(step_of([(prompt(mine, seed + i + 1), shared * PAGE, table)]))
        decode.append(([i % 7 + 1], shared * PAGE + mine, table))
    return fill, decode, free


CASES = {
    "all the same": ([5] * 7, [40] * 7),
    "whole spans": ([8] * 9, [1, 31, 32, 33, 64, 90, 127, 128, 129]),
    "nothing of their own": ([4] * 6, [0] * 6),
    "few pages": ([3] * 5, [70, 1, 60, 3, 90]),
    "of several depths": ([9, 9, 9, 6, 6, 4, 4, 0, 0, 9, 5, 7], [20, 0, 77, 5, 130, 1, 40, 300, 10, 33, 0, 64]),
    "many": ([6] * 21, [(i * 37) % 100 for i in range(21)]),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", [
    {"dim": 64, "heads": 9, "kv_heads": 3}, {"dim": 24, "heads": 8, "kv_heads": 1}, {"dim": 16, "heads": 2, "kv_heads": 2, "window": 150},
    {"dim": 32, "heads": 4, "kv_heads": 2, "softcap": 15.0},
], ids=lambda k: f"{k['heads']}/{k['kv_heads']} of {k['dim']}")
def test_together_and_alone_are_the_same_bits(isa: str, cache: str, case: str, kind: dict[str, Any]) -> None:
    fill, decode, pages = conversations(*CASES[case])
    order = list(np.random.default_rng(1).permutation(len(decode)))
    mixed = [decode[i] for i in order]
    mixed.insert(2, (prompt(9, 77), 0, [pages]))                       # a prompt among them
    together = run(NativeOps(2, isa), [*fill, step_of(mixed, every=False)], cache, pages + 1, **kind)[-1]
    together = np.delete(together, 2, axis=0)
    alone = run(NativeOps(1, isa), [*fill, *(step_of([part], every=False) for part in decode)], cache, pages + 1, **kind)[len(fill) :]
    for place, which in enumerate(order):
        np.testing.assert_array_equal(together[place], alone[which][0])
    assert len({row.tobytes() for row in together}) > len(order) // 2 or case == "nothing of their own"
