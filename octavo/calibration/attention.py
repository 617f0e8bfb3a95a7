"""Causal attention of rows and its gradient, a tile of queries at a time: what no query of a tile can see is never computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

TILE = 128  # queries at a time


@dataclass(frozen=True)
class Tile:
    """Queries [first, last) of one sequence and one key-value head and the keys [begin, last) that they may see.

    weights   float32 [(last - first) * share, last - begin]: softmax of the scores, not yet divided by its sums where `attend` did not keep them
    slopes    of a softcap, likewise, or None
    """

    first: int
    last: int
    begin: int
    weights: np.ndarray
    slopes: np.ndarray | None

    def back(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, grad: np.ndarray, to_q: np.ndarray, to_k: np.ndarray,
             to_v: np.ndarray) -> None:
        """The gradient of the outputs, `grad`, into `to_q`, and added to `to_k` and `to_v`; arrays as in `attend`, which has kept weights and slopes."""
        mine, seen = slice(self.first, self.last), slice(self.begin, self.last)
        grads = grad[mine].reshape(len(self.weights), -1)
        to_v[seen] += self.weights.T @ grads
        scores = grads @ v[seen].T
        scores -= np.einsum("rd,rd->r", grads, out[mine].reshape(grads.shape))[:, None]
        scores *= self.weights
        if self.slopes is not None:
            scores *= self.slopes
        to_q[mine] = (scores @ k[seen]).reshape(to_q[mine].shape)
        to_k[seen] += scores.T @ q[mine].reshape(grads.shape)


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, window: int, softcap: float, out: np.ndarray, *, keep: bool = False) -> Iterator[Tile]:
    """Attention of one sequence and one key-value head: q [length, share, d] (scaled), k, v [length, d], into out [length, share, d]. Runs as it is iterated.
    keep: what `Tile.back` needs."""
    length, share, dim = q.shape
    for first in range(0, length, TILE):
        last = min(first + TILE, length)
        begin = max(0, first - window + 1) if window else 0
        scores = q[first:last].reshape(-1, dim) @ k[begin:last].T
        slopes = None
        if softcap:
            scores *= np.float32(1 / softcap)
            np.tanh(scores, out=scores)
            slopes = 1 - scores * scores if keep else None
            scores *= np.float32(softcap)
        seen_by_all = first - begin if window == 0 else 0  # keys from here on may be hidden from some
        behind = np.arange(first, last)[:, None] - np.arange(begin + seen_by_all, last)[None, :]
        hidden = (behind < 0) | (behind >= window) if window else behind < 0
        np.copyto(scores.reshape(last - first, share, last - begin)[:, :, seen_by_all:], np.float32(-np.inf), where=hidden[:, None, :])
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        parts = 1 / scores.sum(axis=-1, keepdims=True)
        weighed = scores @ v[begin:last]
        weighed *= parts
        out[first:last] = weighed.reshape(last - first, share, dim)
        if keep:
            scores *= parts
        yield Tile(first, last, begin, scores, slopes)
