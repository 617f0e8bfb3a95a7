"""`octavo tune` on the GPU's kernels: planted speeds, a planted wrong kernel, and a policy that is put to use. In Triton's interpreter; time is made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tune.conftest import Silent

from octavo.cache import Step
from octavo.errors import UsageError
from octavo.kernels.triton import choices
from octavo.kernels.triton.choices import USUAL, Way
from octavo.loading import LoadedModel, apply_policy, choosable, fingerprint, load
from octavo.policy import Gain, KernelChoice, Policy, find, policy_path
from octavo.tune import TuneOptions, tune
from octavo.tune import gpu as module
from octavo.tune.gpu import GpuKernels
from octavo.tune.kernels import KernelQuestion
from octavo.tune.whole import EngineWork, Steps, prompt

WRONG, OTHER_BITS = "tile 32x16x64 split 2 warps 4 stages 3", "tile 32x16x64 split 4 warps 4 stages 3"
FAST, SLOW = "tile 32x16x64 split 1 warps 4 stages 2", "tile 16x16x64 split 1 warps 4 stages 2"


@pytest.fixture
def loaded(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Two products have other kernels, the planted ones."""
    monkeypatch.setattr(module, "names", lambda weight, rows, on: [USUAL, SLOW, FAST, WRONG, OTHER_BITS] if weight.k == 172 else [USUAL])
    right = Way.multiply

    def multiply(way: Way, given: Any, weight: Any, bias: Any, residual: Any, narrow: bool) -> torch.Tensor:
        y = right(way, given, weight, bias, residual, narrow)
        if way.name == WRONG:
            y[:, :4] = 0
        if way.name == OTHER_BITS and len(y) > 1:
            y[0, 0] = torch.nextafter(y[0, 0], torch.tensor(9.0))
        return y

    monkeypatch.setattr(Way, "multiply", multiply)
    monkeypatch.setattr(choices, "refusal", lambda name, weight, rows, on: None if name != "no such" else "is not there")
    return load(tiny_model, quantization="W8A16", backend="triton", use_cache=False, max_model_len=64)


def logits(loaded: LoadedModel) -> np.ndarray:
    pool = loaded.new_pool(2)
    return np.concatenate([np.array(loaded.forward(step, pool)) for step in prompt(2, 2)])


def test_a_policy_for_the_gpu(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search takes the planted fast kernel, not the slow, wrong or dependent ones; the policy says where it holds, and changes numbers by rounding only."""
    now, rng = [0.0], np.random.default_rng(0)

    def passed(speed: float, rows: int = 16) -> float:
        seconds = 1e-5 * rows / speed * float(np.exp(0.01 * rng.standard_normal()))
        now[0] += seconds
        return seconds

    def chosen(program: Any) -> bool:
        return any(program.chosen(i, 0) == FAST for i in range(len(program.linears())))

    def step_seconds(_: Steps, program: Any, one: Sequence[Step], *rest: object) -> float:
        return passed(1.2 if chosen(program) else 1.0, sum(len(step.tokens) for step in one))

    monkeypatch.setattr(module, "_by_clock", lambda what, work: passed({FAST: 1.4, SLOW: 0.7}.get(what[2], 1.0)))
    monkeypatch.setattr(Steps, "seconds", step_seconds)
    monkeypatch.setattr(EngineWork, "__call__", lambda work: passed(1.15 if chosen(work.engine.loaded.program) else 1.0))
    before = logits(loaded)
    tuned = tune(loaded, tmp_path, Silent(), TuneOptions(budget=600, max_batch=8, max_batch_tokens=16, seed=2), lambda: now[0])
    assert {choice.kernel for choice in tuned.policy.kernels} == {FAST} and tuned.changed and tuned.policy.threads is None
    (answer,) = [one for one in tuned.answers if one.chosen == FAST]
    rejected = dict(answer.rejected)
    assert "off the reference" in rejected[WRONG] and "other bits than with 1 in" in rejected[OTHER_BITS]
    assert [name for name, _ in answer.ranking] == [FAST, SLOW] and answer.what.startswith("linear 64 x 172, ints8")
    facts = fingerprint(loaded)
    assert {"gpu", "capability", "driver", "cuda", "torch", "triton", "kernels"} <= set(facts) and "cpu" not in facts
    policy, reason = find(policy_path(tmp_path, loaded.name, str(loaded.plan)), facts)
    assert policy is not None and reason == "" and "gpu was" in str(policy.stale({**facts, "gpu": "NVIDIA L4"}))
    assert choosable(loaded).chosen(0, 0) == USUAL and np.array_equal(logits(loaded), before)
    assert apply_policy(loaded, policy) == ["1 kernel for up to 16 rows"]
    after = logits(loaded)
    assert np.abs(after - before).max() <= 2e-3 * np.abs(before).max()


def test_kernels_of_a_model(loaded: LoadedModel) -> None:
    kernels = GpuKernels(loaded)
    (site,) = [site for site in kernels.index if site["k"] == 172]
    assert kernels.bytes[site] == sum(product.weight.nbytes for product in kernels.products[site])
    assert [one["n"] for one in (dict(site.facts) for site in kernels.selected)] == [loaded.vocab_size]
    question = KernelQuestion.make(kernels, site, 16, 1)
    assert question is not None and question.check(FAST) is None and kernels.seconds(site, 16, FAST) > 0
    columns, wanted = kernels.reference(site, 4096)
    assert wanted.shape == (4096, len(columns)) and np.array_equal(wanted[:256], wanted[256:512])
    question.close()


def test_a_policy_of_kernels_that_are_not_there(loaded: LoadedModel) -> None:
    facts = GpuKernels(loaded)
    site = next(iter(facts.index))
    for kernel, rows, why in (("no such", 16, "is not there"), (FAST, 3, "bucket")):
        choice = KernelChoice(dict(site.facts), rows, kernel, USUAL, Gain(0.1, 0.05, 0.15, 12))
        with pytest.raises(UsageError, match=why):
            apply_policy(loaded, Policy({}, (choice,)))
