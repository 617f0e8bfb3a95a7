"""GPTQ against its definition in float64, and what the descent after it may and may not do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from octavo.calibration import Statistics
from octavo.errors import ModelError, UsageError
from octavo.qtensor import NonFiniteError, QTensor
from octavo.quantize.method import rounder
from octavo.quantize.rounders._grid import grids, piece
from octavo.quantize.rounders._lattice import factor, feedback, shares_of
from octavo.quantize.rounders.gptq import Gptq
from octavo.schemes import Plan

K, N = 96, 40
SCHEMES = ("W4g32", "W4g32z", "W3r", "W2g32z", "W8r", "W4t", "Wnf4", "Wfp4", "Wmxfp4", "Wnvfp4", "Wfp8", "Wfp8b32x32", "W4g40", "W5g32", "W6rz", "W7g16@bf16")


def inputs(rows: int = 400, k: int = K, seed: int = 0) -> np.ndarray:
    """Correlated channels of different size."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((rows, k)) @ (np.eye(k) + 0.5 * random.standard_normal((k, k)) / np.sqrt(k))
    return (x * np.exp(random.standard_normal(k) / 2)).astype(np.float32)


def statistics(x: np.ndarray) -> Statistics:
    square = np.square(x).mean(axis=0)
    return Statistics(len(x), x.mean(axis=0), np.abs(x).mean(axis=0), square, x.min(axis=0), x.max(axis=0), (x.T @ x / np.float32(len(x))).astype(np.float32))


def weight(n: int = N, k: int = K, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((n, k)) * 0.05).astype(np.float32)


def spec_of(scheme: str):  # type: ignore[no-untyped-def]
    return Plan.parse(scheme).default.weight


def plain_gptq(w: np.ndarray, gram: np.ndarray, damping: float, scales: np.ndarray, low: int, high: int, size: int) -> np.ndarray:
    """The paper's algorithm, a column at a time, in float64: inverse, its upper Cholesky factor, errors passed on."""
    w, h = w.astype(np.float64).copy(), gram.astype(np.float64).copy()
    h[np.diag_indices(len(h))] += damping * np.trace(h) / len(h)
    order = np.argsort(-np.diagonal(gram), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    q = np.zeros_like(w)
    for i, column in enumerate(order):
        s = scales[:, column // size]
        q[:, column] = np.clip(np.round(w[:, column] / s), low, high) * s
        error = (w[:, column] - q[:, column]) / upper[i, i]
        w[:, order[i:]] -= error[:, None] * upper[i, i:]
    return q


def test_feedback_is_gptq() -> None:
    """The same codes as the paper's algorithm, but where a value lies within rounding of the middle between two."""
    w, gram = weight(), statistics(inputs()).gram
    assert gram is not None
    tensor, groups, free = grids(w, spec_of("W4g32"))
    grid = piece(tensor, groups, free, slice(0, N))
    damped = gram.copy()
    damped[np.diag_indices(K)] += np.float32(0.01 * np.trace(gram, dtype=np.float64) / K)
    order = np.argsort(-np.diagonal(gram), kind="stable")
    m, added = factor(damped, order, 0.0)
    values = feedback(w.T[order], shares_of(m), grid, order, order // 32)
    mine = (values.reshape(3, 32, N) * grid.scales[:, None]).reshape(K, N).T
    assert added == 0 and tensor.scales is not None
    exact = plain_gptq(w, gram, 0.01, tensor.scales, -8, 7, 32)
    assert (np.abs(mine - exact) < 1e-6).mean() > 0.995


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_format_loses_less_than_nearest(scheme: str) -> None:
    w, known = weight(), statistics(inputs())
    spec = spec_of(scheme)
    nearest = known.output_error(w - rounder("rtn").round(w, spec, None).dequantize())
    first = known.output_error(w - Gptq(passes=0).round(w, spec, known).dequantize())
    last = Gptq().round(w, spec, known)
    assert last.spec == spec and last.shape == w.shape
    assert first < 0.9 * nearest
    assert known.output_error(w - last.dequantize()) <= first * 1.02  # the descent works on the damped error


def test_descent_ends_where_no_single_code_helps() -> None:
    w, known = weight(n=6, k=32), statistics(inputs(k=32))
    tensor = Gptq(passes=50).round(w, spec_of("W3r"), known)
    assert known.gram is not None and tensor.scales is not None
    h = known.gram.astype(np.float64)
    h[np.diag_indices(32)] += 0.05 * np.trace(h) / 32
    d = w.astype(np.float64) - tensor.dequantize()
    best = np.einsum("nk,kl,nl->n", d, h, d)
    for column in range(32):
        for step in (-1, 1):
            other = d.copy()
            moved = (tensor.codes[:, column] + step >= -4) & (tensor.codes[:, column] + step <= 3)
            other[:, column] -= step * tensor.scales[:, 0]
            assert (np.einsum("nk,kl,nl->n", other, h, other)[moved] >= best[moved] * (1 - 1e-4)).all()


@pytest.mark.parametrize("scheme", ["W4g32", "W2g32z"])
def test_threads_and_company_change_nothing(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of rows are independent of each other, of the number of threads, and of the weights that are rounded with them."""
    monkeypatch.setattr("octavo.quantize.rounders.gptq.ROWS", 16)
    one, two, known, spec = weight(), weight(n=24, seed=5), statistics(inputs()), spec_of(scheme)
    alone = [Gptq().round(w, spec, known) for w in (one, two)]
    together = Gptq().round_group([one, two], [spec, spec], known, 3)
    for a, b in zip(alone, together, strict=True):
        for part in ("codes", "scales", "zeros"):
            assert np.array_equal(np.asarray(getattr(a, part)), np.asarray(getattr(b, part))), part


def test_dynamic_groups_store_their_order() -> None:
    w, known = weight(), statistics(inputs())
    tensor = Gptq(groups="dynamic").round(w, spec_of("W4g32"), known)
    assert tensor.order is not None and sorted(tensor.order) == list(range(K))
    size = known.mean_square[tensor.order]
    assert (np.diff(size) <= 0).all()
    static = known.output_error(w - Gptq().round(w, spec_of("W4g32"), known).dequantize())
    assert known.output_error(w - tensor.dequantize()) < 1.3 * static


def degenerate() -> dict[str, np.ndarray]:
    x = inputs()
    dead, equal = x.copy(), x.copy()
    dead[:, [3, 50]] = 0
    equal[:, 40:] = equal[:, :1]
    return {"nothing": np.zeros_like(x), "one row": x[:1], "dead channels": dead, "equal channels": equal, "huge": x * np.float32(1e15),
            "tiny": x * np.float32(1e-15)}


@pytest.mark.parametrize("kind", list(degenerate()))
@pytest.mark.parametrize("damping", [0.05, 0.0])
def test_statistics_that_cannot_be_inverted(kind: str, damping: float) -> None:
    """The damping grows until they can; the result is never much worse than the nearest."""
    w, known, spec = weight(), statistics(degenerate()[kind]), spec_of("W4g32")
    tensor = Gptq(damping=damping).round(w, spec, known)
    found = tensor.dequantize()
    assert np.isfinite(found).all()
    nearest = known.output_error(w - rounder("rtn").round(w, spec, None).dequantize())
    assert known.output_error(w - found) <= nearest * 1.001 + 1e-30


def test_weights_of_zeros_and_outliers() -> None:
    w, known = weight(), statistics(inputs())
    w[3] = 0
    w[5, 7] = 40.0
    w[:, 64:] = 0
    tensor = Gptq().round(w, spec_of("W4g32"), known)
    found = tensor.dequantize()
    assert (found[3] == 0).all() and (found[:, 64:] == 0).all() and abs(found[5, 7] - 40) < 5


def test_what_is_refused() -> None:
    known = statistics(inputs())
    broken = weight()
    broken[2, 5] = np.nan
    with pytest.raises(NonFiniteError, match="row 2, column 5"):
        Gptq().round(broken, spec_of("W4g32"), known)
    with pytest.raises(ModelError, match="overflow"):
        Gptq().round(weight(), spec_of("W4g32"), replace(known, gram=np.full((K, K), np.inf, np.float32)))
    with pytest.raises(UsageError, match="static, dynamic"):
        rounder("gptq", {"groups": "some"})
    with pytest.raises(UsageError, match="no option"):
        rounder("gptq", {"dampening": "1"})


@pytest.mark.parametrize(("method", "options"), [("rtn", {}), ("rtn", {"importance": "mean_square"}), ("hqq", {}), ("hqq", {"fraction": "yes"})])
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s not in ("W4g40", "W5g32", "W7g16@bf16")])
def test_the_others_round_every_format(method: str, options: dict[str, str], scheme: str) -> None:
    w, known, spec = weight(), statistics(inputs()), spec_of(scheme)
    w[3] = 0
    made = rounder(method, options)
    tensor: QTensor = made.round(w, spec, known if made.needs != "nothing" else None)
    found = tensor.dequantize()
    nearest = rounder("rtn").round(w, spec, None).dequantize()
    assert (found[3] == 0).all()
    assert np.square(w - found).sum() <= 2 * np.square(w - nearest).sum() + 1e-12


@pytest.mark.parametrize("scheme", ["W4g32", "W4g32z", "W3g32", "W2g32"])
def test_importance_lowers_the_error_of_outputs(scheme: str) -> None:
    w, known, spec = weight(), statistics(inputs()), spec_of(scheme)
    plain = known.output_error(w - rounder("rtn").round(w, spec, None).dequantize())
    weighted = known.output_error(w - rounder("rtn", {"importance": "mean_square"}).round(w, spec, known).dequantize())
    assert weighted < plain
    with pytest.raises(UsageError, match="mean_square"):
        rounder("rtn", {"importance": "much"})


def test_hqq_lowers_the_norm_that_it_is_about() -> None:
    w = (np.random.default_rng(3).standard_t(3, (N, K)) * 0.05).astype(np.float32)

    def norm(a: QTensor) -> float:
        return float((np.abs(w - a.dequantize()) ** 0.7).sum())

    assert norm(rounder("hqq").round(w, spec_of("W3g32z"), None)) < norm(rounder("rtn").round(w, spec_of("W3g32z"), None))
    fractions = rounder("hqq", {"fraction": "yes"}).round(w, spec_of("W3g32z"), None)
    assert fractions.zeros is not None and (fractions.zeros % 1 != 0).any()
