"""Pure functions on logits: how likely the text is, and how far one model's next-token distributions lie from another's.

All are computed in float64 whatever the logits' type, in runs of ROWS rows, so that temporaries stay at ROWS x vocabulary x 8 bytes
(12.6 MB for 49,152 tokens). Every function returns one number per row; means and intervals are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 32


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """-log softmax(logits[r])[targets[r]] in nats: float64 [rows] from logits [rows, vocab] and token ids [rows]."""
    result = np.empty(len(logits))
    for part in _runs(len(logits)):
        shifted = _shifted(logits[part])
        chosen = shifted[np.arange(len(shifted)), targets[part]]
        result[part] = np.log(np.exp(shifted, out=shifted).sum(axis=1)) - chosen
    return result


def kl_divergence(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL(softmax(reference) || softmax(logits)) in nats per row: float64 [rows], both [rows, vocab].

    What the quantized model loses when the original one's probabilities are the truth (Kullback and Leibler, 1951); never negative.
    """
    result = np.empty(len(logits))
    for part in _runs(len(logits)):
        p, q = _log_softmax(reference[part]), _log_softmax(logits[part])
        result[part] = np.maximum((np.exp(p) * (p - q)).sum(axis=1), 0.0)
    return result


def same_top(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """1.0 where both models would choose the same token greedily, else 0.0: float64 [rows]. The lowest id wins a tie, in both."""
    same: np.ndarray = np.argmax(reference, axis=1) == np.argmax(logits, axis=1)
    return same.astype(np.float64)


def _runs(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS):
        yield slice(start, min(start + ROWS, rows))


def _shifted(logits: np.ndarray) -> np.ndarray:
    """float64 copy with 0 as the largest value of each row, so that exp cannot overflow."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = _shifted(logits)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
