"""What an error at each token counts.

Squared errors of outputs weigh a token by the size of its outputs. In many models the first token of a text, and a few others, have outputs hundreds of times
larger than all the rest (attention sinks, arXiv 2309.17453; massive activations, arXiv 2402.17762), and would decide by themselves which errors of
rounding are avoided. What comes next norms its rows or compares them with each other, so here a token's error counts as a part of its own outputs: 1 /
their mean square. Where the outputs are added to the residual stream, they are those of the stream. docs/quantize.md has what that gains.

The sizes need not be exact, so they are those of a random projection of the outputs (Johnson and Lindenstrauss 1984), which costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

WIDTH = 64     # of the projection: sizes within 18% (one standard deviation)
LEAST = 1e-3   # of the median size: outputs smaller than that count no more


class Projection:
    """Of the joined outputs of `weights` [n, k] (and `biases` [n] or None), and of what is added to those of a single weight."""

    def __init__(self, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray | None]) -> None:
        random = np.random.default_rng(0)
        total = np.float32(WIDTH * sum(len(weight) for weight in weights))
        self._signs = [(2 * random.integers(0, 2, (len(weight), WIDTH)) - 1).astype(np.float32) / np.sqrt(total) for weight in weights]
        self._matrix = sum(weight.T @ signs for weight, signs in zip(weights, self._signs, strict=True))
        self._bias = sum(bias @ signs for bias, signs in zip(biases, self._signs, strict=True) if bias is not None)

    def sizes(self, x: np.ndarray, added: np.ndarray | None) -> np.ndarray:
        """About the mean square of each token's outputs, float32 [rows], for inputs x [rows, k]; added [rows, n]: see the class."""
        outputs = x @ self._matrix
        outputs += self._bias
        if added is not None:
            outputs += added @ self._signs[0]
        found: np.ndarray = np.einsum("rd,rd->r", outputs, outputs)
        return found


def counts(sizes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What a squared error of outputs counts at each token, float32 of the same shapes, 1 on average, for mean squares of its outputs."""
    least = LEAST * float(np.median(np.concatenate(sizes)))
    if not 0 < least < np.inf:  # nearly all outputs are 0, or there are no numbers: nothing is known
        return [np.ones_like(part) for part in sizes]
    return as_shares([1 / np.maximum(part, np.float32(least)) for part in sizes])


def as_shares(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """These float32 numbers, none below 0, over their mean; ones where it is 0 or no number."""
    mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / sum(len(part) for part in parts)
    if not 0 < mean < np.inf:
        return [np.ones_like(part) for part in parts]
    return [part / np.float32(mean) for part in parts]


def stretches(length: int) -> list[slice]:
    """A sequence in stretches over which what is read of it changes little: single places at its beginning, ever more after it."""
    edges = [0, 1, 2, 3]
    while edges[-1] < length:
        edges.append(edges[-1] + max(1, 1 << (edges[-1].bit_length() - 2)))
    edges = [edge for edge in edges if edge < length]
    return [slice(a, b) for a, b in zip(edges, [*edges[1:], length], strict=True)]


def placed(counts: Sequence[np.ndarray], reached: np.ndarray) -> list[np.ndarray]:
    """`counts` of tokens, float32 [rows] of each chunk of whole sequences, with a factor for each stretch of a sequence that gives it the share it has of
    `reached` [length]; 1 on average."""
    length = len(reached)
    mean = np.mean([part.reshape(-1, length).mean(axis=0, dtype=np.float64) for part in counts], axis=0)  # the last chunk may have fewer: it hardly matters
    factors = np.empty(length, np.float32)
    for part in stretches(length):
        factors[part] = reached[part].sum(dtype=np.float64) / max(float(mean[part].sum()), 1e-30)
    return as_shares([(part.reshape(-1, length) * factors).reshape(-1) for part in counts])
