"""What two models say about the same tokens, row by row: KL divergence, likelihood of the right token, the same first choice.

One pass over both rows gives everything. Exponentials are float32, sums float64: a row of 49,152 logits costs some 0.4 ms of one core, a fifth
of float64 throughout (`measures.py`, which the tests hold it against), and rows go to several threads. The error stays below
1e-7 nats + 1e-6 of the value, and equal rows give exactly 0.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Per scored token, float64 [rows] unless said otherwise.

    kl         KL(original || model) in nats (Kullback and Leibler, 1951); infinity where the model's logits are no numbers
    original, model   -log probability of the right token, in nats
    same_top   bool: both would choose the same token greedily (the lowest id wins a tie)
    """

    kl: np.ndarray
    original: np.ndarray
    model: np.ndarray
    same_top: np.ndarray

    @classmethod
    def empty(cls, rows: int) -> Rows:
        return cls(np.empty(rows), np.empty(rows), np.empty(rows), np.empty(rows, bool))

    @classmethod
    def joined(cls, parts: list[Rows]) -> Rows:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class Divergence:
    """Compares rows with `threads` threads, which live as long as this does; a context manager."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def __enter__(self) -> Divergence:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def __call__(self, original: np.ndarray, model: np.ndarray, targets: np.ndarray) -> Rows:
        """Rows of logits [rows, vocab], [rows, vocab] of any float type and target ids [rows]."""
        found = Rows.empty(len(targets))
        shares = [range(i, len(targets), self._threads) for i in range(self._threads)]
        others = [self._pool.submit(_compare, original, model, targets, share, found) for share in shares[1:]] if self._pool is not None else []
        _compare(original, model, targets, shares[0], found)
        for other in others:
            other.result()
        return found


def _compare(original: np.ndarray, model: np.ndarray, targets: np.ndarray, rows: range, found: Rows) -> None:
    p, q, d = (np.empty(original.shape[1], np.float32) for _ in range(3))
    with np.errstate(invalid="ignore", over="ignore"):
        for row in rows:
            best, other = int(np.argmax(original[row])), int(np.argmax(model[row]))
            np.subtract(original[row], original[row, best], out=p, dtype=np.float32)
            np.subtract(model[row], model[row, other], out=q, dtype=np.float32)
            found.kl[row], log_p, log_q = _row(p, q, d, best)
            right = int(targets[row])
            found.original[row] = _lost(log_p - (float(original[row, right]) - float(original[row, best])))
            found.model[row] = _lost(log_q - (float(model[row, right]) - float(model[row, other])))
            found.same_top[row] = best == other


def _row(p: np.ndarray, q: np.ndarray, d: np.ndarray, best: int) -> tuple[float, float, float]:
    """(KL, log of the sums of exponentials) of logits with 0 as their maximum, in p at `best`; overwrites its arguments."""
    shift = float(q[best])
    np.subtract(p, q, out=d)
    d += np.float32(shift)  # 0 at the original's first choice, so that what likely tokens differ by are small numbers
    np.exp(p, out=p)
    np.exp(q, out=q)
    total_p, total_q = float(p.sum(dtype=np.float64)), float(q.sum(dtype=np.float64))
    d *= p
    mean = float(d.sum(dtype=np.float64)) / total_p
    if not math.isfinite(mean):  # where the original rules a token out (minus infinity), it loses nothing
        mean = float(d[p > 0].sum(dtype=np.float64)) / total_p
    log_p, log_q = math.log(total_p), math.log(total_q)
    kl = mean - shift - log_p + log_q
    return _lost(0.0 if kl < 0 else kl), log_p, log_q


def _lost(nats: float) -> float:
    """Infinity for what is no number: a model that answers NaN has lost everything."""
    return math.inf if math.isnan(nats) else nats
