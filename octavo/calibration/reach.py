"""What errors of queries, keys and values do behind attention, where alone they matter.

An error at a key is read by all tokens that look at it, and by none that do not, so the size of a key says little of what its error costs. Here the layer is
differentiated back from the outputs of its attention, as parts of their size (see tokens.py), to the linears before it. A few sequences will do: how far
errors reach depends on the place most of all, and within a stretch of text tokens are told apart by the size of their outputs. That squares of gradients weigh
the errors of linears is GuidedQuant's idea (arXiv 2505.07004), which takes the gradient of the whole model's loss; that of random signs costs a fraction of it,
and its squares have the same mean as the squared effects of independent errors (Hutchinson 1990).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .gradients import TapeOps, Var
from .products import product
from .rows import Matrix, Vector

SEQUENCES = 4             # that are differentiated
LEAST = np.float32(1e-3)  # of the median size of outputs: smaller ones count no more


class _ReachedError(Exception):
    """The linear that reads what attention gives has been computed: nothing behind it is wanted."""


class _ToAttention(TapeOps):
    """One sequence, from the inputs of a layer to the first linear behind attention, `result`; gradients end at the linears before it."""

    def __init__(self, length: int) -> None:
        super().__init__(1, length)
        self.before: list[tuple[str, Var]] = []
        self.attended: Var | None = None
        self.result: Var | None = None

    def attention(self, q: Var, k: Var, v: Var, layer: int, **options: Any) -> Var:
        self.attended = super().attention(q, k, v, layer, **options)
        return self.attended

    def _product(self, x: Var, weight: Matrix, bias: Vector | None, residual: Var | None) -> Var:
        value = product(x.value, weight.values)
        if bias is not None:
            value += bias.values
        if x is not self.attended:
            self.before.append((weight.name, made := Var(value)))
            return made
        if residual is not None:
            value += residual.value
        self.result = self._note(value, lambda grad: x.receive(product(grad, np.ascontiguousarray(weight.values.T))))
        raise _ReachedError


def reach(layer: Callable[[TapeOps, Var], Any], x: np.ndarray, seed: Sequence[int]) -> dict[str, np.ndarray]:
    """For each linear of a layer before its attention: the squared error, float32 [length], that an error of size 1 of its outputs at each place of a sequence
    makes in what attention gives to the stream, relative to that, summed over all places that it reaches. {} where no linear reads attention's outputs.

    layer   runs it on inputs [length, hidden]
    x       its inputs, float32 [length, hidden]
    """
    ops = _ToAttention(len(x))
    with contextlib.suppress(_ReachedError):
        layer(ops, Var(x))
    y = ops.result
    if y is None:
        return {}
    sizes = np.sqrt(np.einsum("rn,rn->r", y.value, y.value))
    sizes = np.maximum(sizes, np.sqrt(LEAST) * np.median(sizes))
    signs = 2 * np.random.default_rng(list(seed)).integers(0, 2, y.value.shape, np.int8).astype(np.float32) - 1
    signs /= np.where(sizes > 0, sizes, np.inf)[:, None]
    ops.backward(y, signs)
    return {name: np.zeros(len(x), np.float32) if made.grad is None else np.einsum("rn,rn->r", made.grad, made.grad) for name, made in ops.before}
