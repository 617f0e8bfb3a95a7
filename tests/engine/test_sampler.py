"""The sampler against plain formulas and, for what it draws, against the distribution it should draw from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _native
from octavo.engine.request import Sampling
from octavo.engine.sampler import Sampler, draw, token_logprob, uniform


def make(sampling: Sampling, *, seed: int = 0, choice: int = 0, prompt: tuple[int, ...] = (), ends: tuple[int, ...] = (), size: int = 50) -> Sampler:
    return Sampler(sampling, seed=seed, choice=choice, prompt=prompt, end_ids=ends, vocabulary=size)


def plain_probabilities(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """temperature, top_k, top_p, min_p, written down as in the papers, in float64 over the sorted row."""
    scaled = logits.astype(np.float64) / s.temperature
    p = np.exp(scaled - scaled.max())
    order = np.argsort(-p, kind="stable")
    if s.top_k:
        p[order[s.top_k :]] = 0
    p /= p.sum()
    if s.top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= s.top_p]] = 0
    if s.min_p:
        p[p < s.min_p * p.max()] = 0
    return p / p.sum()


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "warm": {"temperature": 2.0}, "cold": {"temperature": 0.3}, "top_k": {"top_k": 7}, "top_p": {"top_p": 0.8}, "min_p": {"min_p": 0.1},
    "all": {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02}, "top_k beyond": {"top_k": 500}, "wide top_p": {"top_p": 0.99999, "temperature": 3.0},
}


@pytest.mark.parametrize("size", [12, 700])
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_distribution(name: str, size: int) -> None:
    """Chi-square over 4,000 draws, at 5 standard deviations; nothing outside the support is ever drawn."""
    sampling = Sampling(seed=1, **CASES[name])
    logits = (np.random.default_rng(size).normal(size=size) * 2).astype(np.float32)
    expected = plain_probabilities(logits, sampling)
    sampler, draws = make(sampling, seed=3, size=size), 4000
    counts = np.bincount([sampler.draw(logits, i) for i in range(draws)], minlength=size)
    assert not counts[expected == 0].any()
    likely = expected * draws >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(expected[likely], expected[~likely].sum()) * draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic, freedom = float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1
    assert statistic <= freedom + 5 * np.sqrt(2 * max(freedom, 1))


def pick(probabilities: np.ndarray, order: np.ndarray, u: float) -> set[int]:
    """What u in [0, 1) may pick from the probabilities in this order, a rounding error either way."""
    sums = np.cumsum(probabilities[order])
    return {int(order[min(int(np.searchsorted(sums, v, side="right")), len(order) - 1)]) for v in (u - 2e-6, u, u + 2e-6)}


@given(st.integers(0, 10_000), st.sampled_from([3, 300, 1024, 5000]), st.sampled_from([0.01, 1.0, 6.0]), st.sampled_from(sorted(CASES)))
@settings(max_examples=150, deadline=None)
def test_each_draw_is_the_inverse_of_the_distribution(seed: int, size: int, spread: float, name: str) -> None:
    """Flat rows too, where the nucleus reaches beyond the head and the whole row is sorted."""
    sampling = Sampling(**CASES[name])
    logits = (np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)
    p = plain_probabilities(logits, sampling)
    cut = 0 < sampling.top_k < size or sampling.top_p < 1
    order = np.argsort(-logits, kind="stable") if cut else np.arange(size)
    token = make(sampling, seed=seed, size=size).draw(logits, 5)
    assert token in pick(p, order, uniform(seed, 0, 5))


def test_greedy_and_ties() -> None:
    logits = np.array([1, 3, 3, 0], np.float32)
    assert make(Sampling(temperature=0), size=4).draw(logits, 0) == 1
    assert make(Sampling(top_k=1), size=4).draw(logits, 0) == 1
    assert make(Sampling(top_p=1e-9), size=4).draw(logits, 0) == 1
    assert make(Sampling(temperature=1e-9), size=4).draw(logits, 0) == 1


def test_penalties_and_bias_as_written() -> None:
    logits = np.array([2.0, -1.0, 1.9, 0.5, 0.4], np.float32)
    sampler = make(Sampling(temperature=0, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 0.2, 4: -100}),
                   prompt=(0, 1), size=5)
    sampler.accept(2)
    sampler.accept(2)
    row = sampler._adjusted(logits, 0, None)
    assert row == pytest.approx([1.0, -2.0, 0.95 - 0.5 - 0.5, 0.7, -99.6])
    assert logits[0] == 2.0                                   # the model's own logits stay as they are
    assert not sampler.raw(0)


def test_min_tokens_and_grammar_mask() -> None:
    logits = np.array([0, 5, 1, 2], np.float32)
    sampler = make(Sampling(temperature=0, min_tokens=2), ends=(1,), size=4)
    assert [sampler.draw(logits, i) for i in range(3)] == [3, 3, 1]
    allowed = np.array([True, False, True, False])
    assert sampler.draw(logits, 2, allowed) == 2
    assert sampler.draw(logits, 0, np.array([False, True, False, False])) == 1   # the grammar is complete: nothing else is left
    rng = make(Sampling(temperature=5.0), size=4)
    assert {rng.draw(logits, i, allowed) for i in range(50)} == {0, 2}


def test_the_draw_depends_on_seed_choice_and_index_alone() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    draws = [make(Sampling(), seed=9, choice=2).draw(logits, i) for i in range(20)]
    assert draws == [make(Sampling(), seed=9, choice=2).draw(logits, i) for i in range(20)]
    assert draws != [make(Sampling(), seed=9, choice=1).draw(logits, i) for i in range(20)]
    assert draws != [make(Sampling(), seed=10, choice=2).draw(logits, i) for i in range(20)]
    values = np.array([uniform(s, c, i) for s in range(10) for c in range(10) for i in range(100)])
    assert abs(values.mean() - 0.5) < 0.01 and abs(np.histogram(values, 10, (0, 1))[0] - 1000).max() < 150


@given(st.integers(0, 1000), st.sampled_from([0.01, 1.0, 8.0]), st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_logprobs_against_log_softmax(seed: int, spread: float, top: int) -> None:
    row = (np.random.default_rng(seed).normal(size=300) * spread).astype(np.float32)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    scored = token_logprob(row, 17, top)
    assert scored.logprob == pytest.approx(exact[17], abs=1e-4)
    assert [t for t, _ in scored.top] == np.argsort(-row, kind="stable")[:top].tolist()


@pytest.mark.parametrize("isa", _native.available_isas())
def test_draws_in_company_are_the_draws_alone(isa: str) -> None:
    """Whatever the team, the other rows and their order; every kind of cut, odd widths, ties, masked tokens."""
    rng = np.random.default_rng(2)
    for width in (1, 15, 255, 1000, 4097):
        logits = (rng.normal(size=(9, width)) * 3).round(1).astype(np.float32)
        logits[:, rng.integers(0, width, width // 3)] = -np.inf
        samplers = [make(Sampling(**options), seed=seed, size=width) for seed, options in enumerate(CASES.values())]
        wanted = [(sampler, row, index) for index, sampler in enumerate(samplers) for row in range(9)]
        together = draw(_native.Drawer(_native.Team(3), isa), logits, wanted)
        one = _native.Drawer(_native.Team(1), isa)
        backwards = [draw(one, logits, [each])[0] for each in reversed(wanted)]
        assert together == backwards[::-1]
        for token, (_, row, _) in zip(together, wanted, strict=True):
            assert logits[row, token] > -np.inf or not np.isfinite(logits[row]).any()


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_inverts_the_distribution(isa: str, name: str) -> None:
    sampling, rng, drawer = Sampling(**CASES[name]), np.random.default_rng(7), _native.Drawer(_native.Team(1), isa)
    for size in (3, 300, 5000):
        logits = (rng.normal(size=(1, size)) * rng.choice([0.01, 1, 6])).astype(np.float32)
        p = plain_probabilities(logits[0], sampling)
        order = np.argsort(-logits[0], kind="stable") if 0 < sampling.top_k < size or sampling.top_p < 1 else np.arange(size)
        for u in (0.0, 1e-9, 0.3, 0.77, 0.9999):
            token = drawer.draw(logits, [0], [sampling.temperature], [sampling.top_k], [sampling.top_p], [sampling.min_p], [u])[0]
            assert token in pick(p, order, u)


def test_rows_without_a_finite_largest_value_give_its_place() -> None:
    drawer = _native.Drawer(_native.Team(1))
    for row, place in (([0, np.nan, 9], 1), ([-np.inf] * 3, 0), ([1, np.inf, np.inf], 1)):
        assert drawer.draw(np.array([row], np.float32), [0], [1.0], [0], [1.0], [0.0], [0.5]) == [place]


@pytest.mark.parametrize("change", [{"rows": [1]}, {"rows": [-1]}, {"temperature": [0.0]}, {"u": [1.0]}, {"top_k": []}, {"temperature": [float("nan")]}])
def test_settings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"rows": [0], "temperature": [1.0], "top_k": [0], "top_p": [1.0], "min_p": [0.0], "u": [0.5], **change}
    with pytest.raises(ValueError, match="draw"):
        _native.Drawer(_native.Team(1)).draw(np.zeros((1, 4), np.float32), **settings)
