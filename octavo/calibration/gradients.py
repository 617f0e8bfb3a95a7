"""TapeOps: the op contract in NumPy float32 with a way back. A model's description runs once forward over a few whole sequences, every op notes how to
carry a gradient from its result to what it read, and `backward` plays the notes from the last to the first (reverse-mode differentiation).

Nothing but the descriptions in `models/` is needed, so every model that runs can be differentiated, without torch. Gradients go to activations;
what a weight's gradient would be follows from the (input, gradient of the output) pairs of the linears, which `linears` lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import KernelError
from .attention import attend
from .rows import ACTIVATIONS, Matrix, Vector, turned


class Var:
    """A value [rows, width] and, after `backward`, the gradient of what was differentiated with respect to it (None: it does not depend on it)."""

    __slots__ = ("grad", "value")

    def __init__(self, value: np.ndarray) -> None:
        self.value = value
        self.grad: np.ndarray | None = None

    def receive(self, grad: np.ndarray) -> None:
        self.grad = grad if self.grad is None else self.grad + grad


@dataclass(frozen=True)
class Linear:
    """A weight's inputs [rows, k] and outputs [rows, n]."""

    weight: Matrix
    x: Var
    y: Var


class TapeOps:
    """Implements op.Ops for tokens [sequences, length], all sequences at positions 0 to length - 1, without a cache. `linears` and `caches` list what
    was computed, in order; caches are the (keys, values) of each attention, as a cache would hold them."""

    name = "tape"

    def __init__(self, sequences: int, length: int) -> None:
        self.sequences, self.length = sequences, length
        self.linears: list[Linear] = []
        self.caches: list[tuple[Var, Var]] = []
        self._tape: list[tuple[Var, Callable[[np.ndarray], None]]] = []

    def backward(self, result: Var, grad: np.ndarray) -> None:
        """Gradients of sum(grad * result) with respect to everything that `result` was computed from."""
        result.receive(grad)
        for made, back in reversed(self._tape):
            if made.grad is not None:
                back(made.grad)
        self._tape.clear()

    def _note(self, value: np.ndarray, back: Callable[[np.ndarray], None]) -> Var:
        made = Var(value)
        self._tape.append((made, back))
        return made

    # The op contract -------------------------------------------------------------------------------------------------------------

    def supports(self, problem: object) -> str | None:
        return None

    def prepare(self, tensor: object, activation: object, input_scale: float = 0.0) -> Any:
        raise KernelError("gradients take their weights as arrays", where="tape")

    def constant(self, array: Any) -> Vector:
        return Vector("", np.asarray(array, np.float32))

    def embed(self, weight: Any, factor: float = 1.0) -> Var:
        raise KernelError("gradients begin behind the embedding", where="tape")

    def linear(self, x: Var, weights: Sequence[Matrix], biases: Sequence[Vector | None] | None = None, residual: Var | None = None) -> tuple[Var, ...]:
        given = [None] * len(weights) if biases is None else list(biases)
        return tuple(self._product(x, weight, bias, residual) for weight, bias in zip(weights, given, strict=True))

    def _product(self, x: Var, weight: Matrix, bias: Vector | None, residual: Var | None) -> Var:
        value = x.value @ weight.values.T
        if bias is not None:
            value += bias.values
        if residual is not None:
            value += residual.value

        def back(grad: np.ndarray) -> None:
            x.receive(grad @ weight.values)
            if residual is not None:
                residual.receive(grad)

        y = self._note(value, back)
        self.linears.append(Linear(weight, x, y))
        return y

    def rms_norm(self, x: Var, gain: Vector, eps: float, offset: float = 0.0, groups: int = 1) -> Var:
        parts = x.value.reshape(len(x.value), groups, -1)
        factor = gain.values + np.float32(offset)
        inverse = 1 / np.sqrt(np.einsum("rgk,rgk->rg", parts, parts)[..., None] / np.float32(parts.shape[-1]) + np.float32(eps))

        def back(grad: np.ndarray) -> None:
            scaled = grad.reshape(parts.shape) * factor
            along = np.einsum("rgk,rgk->rg", scaled, parts)[..., None] / np.float32(parts.shape[-1])
            x.receive((inverse * (scaled - parts * (inverse**2 * along))).reshape(x.value.shape))

        return self._note((parts * inverse * factor).reshape(x.value.shape), back)

    def rope(self, x: Var, table: Vector, heads: int, head_dim: int, rotary: int) -> Var:
        half = rotary // 2
        cos, sin = table.values[: self.length, None, :half], table.values[: self.length, None, half:rotary]
        return self._note(turned(x.value, cos, sin, self.length, heads, head_dim),
                          lambda grad: x.receive(turned(grad, cos, -sin, self.length, heads, head_dim)))

    def attention(self, q: Var, k: Var, v: Var, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0,
                  softcap: float = 0.0) -> Var:
        self.caches.append((k, v))
        shape = (self.sequences, self.length, kv_heads, heads // kv_heads, head_dim)
        queries = q.value.reshape(shape).transpose(0, 2, 1, 3, 4) * np.float32(scale)  # sequence, kv head, token, share, dim
        keys, values = (a.value.reshape(self.sequences, self.length, kv_heads, head_dim).transpose(0, 2, 1, 3) for a in (k, v))
        out = np.empty_like(queries)
        places = [(s, h) for s in range(self.sequences) for h in range(kv_heads)]
        for at in places:
            for _ in attend(queries[at], keys[at], values[at], window, softcap, out[at]):
                pass

        def back(grad: np.ndarray) -> None:
            grads = grad.reshape(shape).transpose(0, 2, 1, 3, 4)
            to_q, to_k, to_v = np.empty_like(queries), np.zeros(keys.shape, np.float32), np.zeros(values.shape, np.float32)
            for at in places:  # softmax weights again: kept, they would be the square of the length
                for tile in attend(queries[at], keys[at], values[at], window, softcap, np.empty_like(out[at]), keep=True):
                    tile.back(queries[at], keys[at], values[at], out[at], grads[at], to_q[at], to_k[at], to_v[at])
            to_q *= np.float32(scale)
            q.receive(to_q.transpose(0, 2, 1, 3, 4).reshape(q.value.shape))
            for of, to in ((k, to_k), (v, to_v)):
                of.receive(to.transpose(0, 2, 1, 3).reshape(of.value.shape))

        return self._note(out.transpose(0, 2, 1, 3, 4).reshape(q.value.shape), back)

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: Var, up: Var) -> Var:
        activated, slope = ACTIVATIONS[kind](gate.value), SLOPES[kind](gate.value)

        def back(grad: np.ndarray) -> None:
            gate.receive(grad * up.value * slope)
            up.receive(grad * activated)

        return self._note(activated * up.value, back)

    def add(self, x: Var, y: Var) -> Var:
        def back(grad: np.ndarray) -> None:
            x.receive(grad)
            y.receive(grad)

        return self._note(x.value + y.value, back)

    def softcap(self, x: Var, cap: float) -> Var:
        bent = np.tanh(x.value / np.float32(cap))
        return self._note(np.float32(cap) * bent, lambda grad: x.receive(grad * (1 - bent**2)))

    def select(self, x: Var) -> Var:
        return x


def _silu_slope(x: np.ndarray) -> np.ndarray:
    sigmoid = 1 / (1 + np.exp(-np.clip(x, -80, None)))
    slope: np.ndarray = sigmoid * (1 + x * (1 - sigmoid))
    return slope


def _gelu_tanh_slope(x: np.ndarray) -> np.ndarray:
    root, cubic = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)
    square = x * x
    bent = np.tanh(root * x * (1 + cubic * square))
    slope: np.ndarray = np.float32(0.5) * (1 + bent + x * (1 - bent * bent) * root * (1 + 3 * cubic * square))
    return slope


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    density = np.exp(-(x**2) / 2) / np.float32(math.sqrt(2 * math.pi))
    slope: np.ndarray = np.float32(0.5) * (1 + erf(x / np.float32(math.sqrt(2)))) + x * density
    return slope


SLOPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"silu": _silu_slope, "gelu_tanh": _gelu_tanh_slope, "gelu": _gelu_slope}
