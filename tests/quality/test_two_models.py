"""Two models side by side: against float64, on what has a known answer, and on what is broken."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_perplexity import ALPHABET, VOCAB, Cyclic

from octavo.errors import UsageError
from octavo.quality import (
    Comparison,
    Divergence,
    Rows,
    Windows,
    compare,
    compare_all,
    kl_divergence,
    negative_log_likelihood,
    quantile_interval,
    record,
    windows_of,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a loaded machine
@given(rows=st.integers(1, 9), vocab=st.integers(1, 3000), spread=st.sampled_from([0.0, 1.0, 30.0, 3e4]), noise=st.sampled_from([0.0, 1e-3, 0.1, 5.0]),
       threads=st.integers(1, 3), seed=st.integers(0, 999))
def test_rows_equal_float64(rows: int, vocab: int, spread: float, noise: float, threads: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    p = (spread * draw.standard_normal((rows, vocab))).astype(np.float32)
    q = (p + noise * draw.standard_normal((rows, vocab)) - 3 * noise).astype(np.float32)
    targets = draw.integers(0, vocab, rows)
    with Divergence(threads) as divergence:
        found = divergence(p, q, targets)
    np.testing.assert_allclose(found.kl, kl_divergence(p, q), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.original, negative_log_likelihood(p, targets), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.model, negative_log_likelihood(q, targets), rtol=1e-6, atol=1e-7)
    assert np.array_equal(found.same_top, p.argmax(1) == q.argmax(1))


def test_equal_rows_give_exactly_zero() -> None:
    p = np.random.default_rng(0).standard_normal((5, 49_152)).astype(np.float32) * 5
    with Divergence(2) as divergence:
        assert not divergence(p, p, np.zeros(5, int)).kl.any()


def test_what_is_no_number_has_lost_everything() -> None:
    good = np.array([[1.0, 2.0, 3.0]], np.float32)
    inf = np.float32(np.inf)
    with Divergence() as divergence:
        for bad in ([np.nan, 1, 2], [inf, 1, 2], [-inf, -inf, -inf], [-inf, 2.0, 3.0]):
            assert divergence(good, np.array([bad], np.float32), np.array([1])).kl[0] == math.inf
        assert divergence(np.array([[np.nan, 1, 2]], np.float32), good, np.array([1])).kl[0] == math.inf
        masked = divergence(np.array([[-inf, 2.0, 3.0]], np.float32), good, np.array([1]))
        assert masked.kl[0] == pytest.approx(math.log(math.exp(-2) + math.exp(-1) + 1) - math.log(math.exp(-1) + 1), rel=1e-6)


def test_known_models() -> None:
    """The original is certain of the next letter with p, the model with q, both right; all else is uniform."""
    sure, less = Cyclic(3.0), Cyclic(2.0)
    found = compare(sure, less, windows_of(sure, ALPHABET, context=600, windows=3))
    p, q = (math.exp(s) / (math.exp(s) + VOCAB - 1) for s in (3.0, 2.0))
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.kl.value == pytest.approx(kl, rel=1e-6) and found.kl.low == pytest.approx(kl, rel=1e-6)
    assert found.perplexity_ratio.value == pytest.approx(p / q) and found.original_perplexity.value == pytest.approx(1 / p)
    assert found.top1_agreement.value == 1.0 and found.shift == pytest.approx(q - p)
    assert len(found.kl_by_window) == 3 and found.kl_by_window == pytest.approx(kl, rel=1e-6)
    parts = found.kl_by_position(4)
    assert [stop for _, stop, _ in parts][-1] == 600 and all(e.value == pytest.approx(kl, rel=1e-6) for _, _, e in parts)


def test_a_model_against_itself_is_zero() -> None:
    model = Cyclic(3.0)
    found = compare(model, model, windows_of(model, ALPHABET, context=300, windows=2)).to_json()
    assert found["kl"]["mean"] == found["kl"]["max"] == found["kl"]["high"] == 0.0
    assert found["perplexity_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_broken_model_is_counted_and_json_stays_json() -> None:
    class Broken(Cyclic):
        def forward(self, step, pool):  # type: ignore[no-untyped-def]
            logits = super().forward(step, pool)
            logits[step.positions[step.select] == 7] = np.nan
            return logits

    model = Cyclic(3.0)
    found = compare(model, Broken(3.0), windows_of(model, ALPHABET, context=300, windows=2)).to_json()
    assert found["broken_tokens"] == 2 and found["kl"]["mean"] is None and found["kl"]["max"] is None and found["perplexity"]["value"] is None
    json.loads(json.dumps(found, allow_nan=False))


def test_several_models_share_the_original() -> None:
    model = Cyclic(3.0)
    windows = windows_of(model, ALPHABET, context=300, windows=2)
    both = compare_all(model, [Cyclic(2.0), Cyclic(1.0)], windows)
    steps = len(model.steps)
    assert [c.kl.value for c in both] == [compare(model, Cyclic(s), windows).kl.value for s in (2.0, 1.0)] and len(model.steps) == 3 * steps


def test_other_vocabularies_are_refused() -> None:
    class Wide(Cyclic):
        def forward(self, step, pool):  # type: ignore[no-untyped-def]
            return np.pad(super().forward(step, pool), ((0, 0), (0, 4)))

    model = Cyclic()
    with pytest.raises(UsageError, match="32 tokens in its vocabulary, the model 36"):
        compare(model, Wide(), windows_of(model, ALPHABET, context=300, windows=1))


def test_recorded_logits_stand_for_the_original(tmp_path: Path) -> None:
    model, other = Cyclic(3.0), Cyclic(2.0)
    windows = windows_of(model, ALPHABET, context=600, stride=250, windows=3)
    recording = record(model, windows, tmp_path / "logits.npy")
    assert np.array_equal(compare(recording, other, windows).rows.kl, compare(model, other, windows).rows.kl)
    half = record(model, windows, tmp_path / "half.npy", dtype="float16")
    assert compare(half, model, windows).kl.value < 1e-5
    with pytest.raises(UsageError, match="another text"):
        list(recording.replay(windows_of(model, ALPHABET, context=500)))


def test_documents_are_blocks_where_there_are_enough() -> None:
    model = Cyclic()
    few, many = ([ALPHABET[:4000 // n]] * n for n in (4, 16))
    cuts = windows_of(model, many, context=300)
    assert len(np.unique(cuts.blocks)) == 16 and len(cuts.blocks) == cuts.targets
    assert np.array_equal(np.flatnonzero(np.diff(cuts.blocks))[:1] + 1, [249]), "the first token of the second document is the 250th that is scored"
    cuts = windows_of(model, few, context=300)
    assert np.array_equal(cuts.blocks, cuts.window_of)
    assert np.array_equal(windows_of(model, "".join(many), context=300).tokens, windows_of(model, many, context=300).tokens)


def test_paired_ratio_is_narrower_than_either_perplexity() -> None:
    draw = np.random.default_rng(0)
    hard = np.repeat(draw.gamma(2.0, 1.0, 40), 50)
    rows = Rows(np.zeros(2000), hard, hard + 0.01 + 0.01 * draw.standard_normal(2000), np.ones(2000, bool))
    found = Comparison(Windows(np.zeros((40, 51), np.int32), np.full(40, 50)), rows)
    ratio, alone = found.perplexity_ratio, found.perplexity
    assert ratio.low < math.exp(0.01) < ratio.high and (ratio.high - ratio.low) < 0.01 * (alone.high - alone.low) / alone.value


def test_quantiles_cover_the_truth() -> None:
    hits = sum(low <= 1.2816 <= high for low, high in (
        quantile_interval(np.random.default_rng(seed).standard_normal(600), 5, 0.9) for seed in range(60)))
    assert hits >= 50
