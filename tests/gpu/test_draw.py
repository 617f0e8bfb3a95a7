"""Tokens drawn on the GPU against those that csrc/sampling.cpp draws, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from octavo import _native
from octavo.engine.request import Sampling
from octavo.engine.sampler import Sampler, draw
from octavo.kernels.op import Draws
from octavo.kernels.triton import draw as module
from octavo.kernels.triton.program import Logits, largest

WIDTH = 5000
WAYS: list[dict[str, Any]] = [{"temperature": 0.7}, {"temperature": 1.3, "min_p": 0.05}, {"temperature": 0.8, "top_k": 40}, {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.02}, {"temperature": 1.1, "top_k": 1}]


def samplers(count: int) -> list[Sampler]:
    return [Sampler(Sampling(**WAYS[i % len(WAYS)]), seed=i, choice=0, prompt=(), end_ids=(), vocabulary=WIDTH) for i in range(count)]


def test_tokens_are_those_of_the_cpu() -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((18, WIDTH))).astype(np.float32)
    logits[5, 100:200] = logits[5].max()  # equal ones go by id
    drawer = _native.Drawer(_native.Team(1))
    wanted = [(sampler, row, 3) for row, sampler in enumerate(samplers(len(logits)))]
    assert draw(drawer, Logits(torch.from_numpy(logits)), wanted) == draw(drawer, logits, wanted)


def test_a_row_without_a_short_head_is_drawn_on_the_cpu() -> None:
    """All alike: no head holds nine tenths of the probability."""
    logits = np.zeros((2, WIDTH), np.float32)
    logits[1, 7] = 30
    there = Logits(torch.from_numpy(logits))
    assert there.draw([0, 1], [1.0, 1.0], [0, 0], [0.9, 0.9], [0.0, 0.0], [0.5, 0.5]) == [-1, 7]
    drawer = _native.Drawer(_native.Team(1))
    wanted = [(samplers(4)[3], row, 0) for row in (0, 1)]
    assert draw(drawer, there, wanted) == draw(drawer, logits, wanted)


def test_the_draws_of_a_captured_step() -> None:
    """Turn after turn with the next u; greedy rows take their likeliest, and a row that the CPU must draw says so."""
    rng = np.random.default_rng(1)
    logits = (3 * rng.standard_normal((4, WIDTH))).astype(np.float32)
    logits[3] = 0
    ways = [WAYS[0], {"temperature": 0.0}, WAYS[4], WAYS[3]]
    of = {name: np.array([way.get(name, usual) for way in ways]) for name, usual in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0))}
    draws = Draws(of["temperature"], of["top_k"], of["top_p"], of["min_p"], rng.random((2, 4)))
    rows = module.DrawnRows(5, 3, torch.device("cpu"))
    there = torch.from_numpy(np.concatenate([logits, logits[:1]]))
    rows.set(draws, WIDTH)
    drawer = _native.Drawer(_native.Team(1))
    for u in draws.u:
        found = rows.into(largest(there), there)
        for row in (0, 2):
            how = [float(of[name][row]) for name in ("top_p", "min_p")]
            wanted = drawer.draw(logits, [row], [float(of["temperature"][row])], [int(of["top_k"][row])], [how[0]], [how[1]], [float(u[row])])
            assert found[0, row] == wanted[0]
        assert found[0, 1] == logits[1].argmax() and found[0, 3] == -1 and found[0, 4] == logits[0].argmax()
        assert torch.equal(found[1].view(torch.float32), there.max(dim=1).values)


def test_nothing_to_draw() -> None:
    assert module.draw(torch.zeros((1, 8)), [], [], [], [], [], []) == []


@pytest.mark.parametrize("u,token", [(0.0, 0), (0.49, 0), (0.51, 2), (0.99, 2)])
def test_u_picks_in_the_order_of_ids(u: float, token: int) -> None:
    row = torch.tensor([[2.0, -50.0, 2.0, -50.0]])
    assert module.draw(row, [0], [1.0], [0], [1.0], [0.0], [u]) == [token]
