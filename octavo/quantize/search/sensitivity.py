"""Sensitivity: what rounding each weight to each precision costs in KL at the model's output, from one pass forward and one back.

For a small change of the logits, KL(original || rounded) is half of a quadratic form, the Fisher information. With labels y drawn from the original's own
predictions and g the gradient of -log p(y), summed over a sequence, it is 1/2 E[<g, change>^2] per sequence. Rounding a weight W to Q changes its outputs
by x (Q - W)^T, so <g, change> = <dW, Q - W> where dW is the weight's gradient of that sequence: no forward per weight and precision, as replacing one
weight after another would need. How well this predicts, and what it was compared with, stands in docs/mixed-precision.md.

Inputs that are rounded, too (W8A8), change the outputs by (round(x) - x) W^T: <g, change> of a token is <g W, round(x) - x>. Errors of different tokens hardly
add up, so every token is a draw of its own, and there is little noise. Weights that read the same inputs are counted each for itself. Where inputs are
rotated before they are rounded (W8A8h), the weight is rounded rotated, and both changes are turned back.

The output layer needs no gradient: there the form is the variance of the change of the logits under p, exact for every token.

Sources: Fisher information as the metric of KL (Amari, 1998); for quantization, HAWQ-V2 (arXiv 1911.03852) and Fisher-weighted errors in SqueezeLLM
(arXiv 2306.07629). Here the squared projection is of the true rounding error, so that what a rounder does about correlated inputs counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from types import TracebackType
from typing import Any

import numpy as np

from ...calibration.blocks import Bound, Weights
from ...calibration.extra import one_blas_thread
from ...calibration.gradients import Linear, TapeOps, Var
from ...calibration.observers import Observer
from ...calibration.rows import Vector
from ...calibration.statistics import Statistics, combine, means, of_rows
from ...calibration.tokens import counts
from ...kernels.reference import round_activations
from ...layers import head
from ...models import Decoder
from ...qtensor import quantize, rotate, rotation_of
from ...schemes import Scheme, TensorSpec
from ..inputs import USUAL, is_static, rotation_for
from ..method import BlockRounder, Rounder, needs_of, round_rotated

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 1024            # rows run through a layer at a time, about: whole sequences
LOGIT_BYTES = 1 << 27  # of a float32 array of logits
PIECE = 4096           # rows of the table of words rounded at a time
ERROR_ROWS = 256       # tokens that output errors of a layer's weights are measured on, about
HEAD_ROWS = 512        # tokens that the output layer's errors are measured on, at most
TILE_BYTES = 1 << 27   # of weight gradients at a time
OnLayer = Callable[[int, int], None]


@dataclass(frozen=True)
class Sensitivity:
    """Of one weight: `kl[i]` nats per token that `schemes[i]` costs, of which rounding the inputs `inputs[i]`."""

    schemes: tuple[Scheme, ...]
    kl: np.ndarray
    inputs: np.ndarray


class Sensitivities:
    """measure() of the weights of `wanted`: name -> the precisions in question. Names of the layers' linears, and of the outer weights.

    method    what rounds the linears; the outer weights are always rounded to nearest
    tokens    int32 [sequences, length]
    """

    def __init__(self, model: Decoder, weights: Weights, tokens: np.ndarray, wanted: Mapping[str, Sequence[Scheme]], method: Rounder, threads: int,
                 seed: int = 0) -> None:
        self.model, self.weights, self.tokens, self.wanted, self.method, self.seed = model, weights, tokens, wanted, method, seed
        self.sequences, self.length = tokens.shape
        step = max(1, ROWS // self.length)
        self.threads = threads
        self.parts = [slice(a, min(a + step, self.sequences)) for a in range(0, self.sequences, step)]
        self._pool = ThreadPoolExecutor(threads)
        self._tables: dict[str, Vector] = {}
        self.found: dict[str, Sensitivity] = {}

    def __enter__(self) -> Sensitivities:
        self._limits: Any = one_blas_thread()  # any number of threads gives the same bits
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()
        self._limits.restore_original_limits()

    def measure(self, on_layer: OnLayer | None = None) -> dict[str, Sensitivity]:
        """`on_layer(done, of)` is called after each layer, forward and back."""
        model = self.model
        inputs = [[self.weights.rows(EMBEDDING, self.tokens[part].reshape(-1)) * np.float32(model.embed_factor) for part in self.parts]]
        for layer in range(model.layers):
            held: dict[str, np.ndarray] = {}
            inputs.append(list(self._pool.map(lambda part, x, layer=layer, held=held: self._forward(layer, held, part, x)[2].value, self.parts, inputs[-1])))
            self._tell(on_layer, layer + 1)
        grads = self._outer(inputs.pop())
        for layer in reversed(range(model.layers)):
            grads = self._layer(layer, inputs.pop(), grads)
            self._tell(on_layer, 2 * model.layers - layer)
        self._embedding(grads)
        return {name: self.found[name] for name in self.wanted}

    def _tell(self, on_layer: OnLayer | None, done: int) -> None:
        if on_layer is not None:
            on_layer(done, 2 * self.model.layers)

    # The layers ------------------------------------------------------------------------------------------------------------------

    def _forward(self, layer: int, held: dict[str, np.ndarray], part: slice, x: np.ndarray) -> tuple[TapeOps, Var, Var]:
        ops = TapeOps(part.stop - part.start, self.length)
        begin = Var(x)
        return ops, begin, self.model.layer(Bound(ops, self.weights, held, self._tables), begin, layer)

    def _layer(self, layer: int, inputs: list[np.ndarray], grads: list[np.ndarray]) -> list[np.ndarray]:
        """The layer's weights into `found`; gradients of its outputs in, of its inputs out."""
        held: dict[str, np.ndarray] = {}

        def both(part: slice, x: np.ndarray, grad: np.ndarray) -> tuple[list[Linear], np.ndarray]:
            ops, begin, end = self._forward(layer, held, part, x)
            linears = ops.linears
            ops.backward(end, grad)
            assert begin.grad is not None
            return linears, begin.grad

        done = list(self._pool.map(both, self.parts, inputs, grads))
        linears = list(zip(*(linears for linears, _ in done), strict=True))
        for _, found in groupby(linears, lambda seen: id(seen[0].x)):  # linears of one input share its statistics
            group = list(found)
            if any(seen[0].weight.name in self.wanted for seen in group):
                statistics = self._statistics(group)
                for seen in group:
                    if seen[0].weight.name in self.wanted:
                        self._linear(seen, statistics)
        return [grad for _, grad in done]

    def _statistics(self, group: Sequence[Sequence[Linear]]) -> Statistics | None:
        """Of the inputs of some linears, which are the same: each of them once for every part of the rows."""
        needs = needs_of(self.method)
        if needs == "nothing":
            return None
        gram = needs == "gram" or any(scheme.activation.rotated for schemes in self.wanted.values() for scheme in schemes)
        counted: Sequence[np.ndarray | None] = [None] * len(group[0])
        if needs == "gram":
            counted = counts([sum(np.einsum("rn,rn->r", one.y.value, one.y.value) for one in part) for part in zip(*group, strict=True)])
        total: Statistics | None = None
        for part in self._pool.map(lambda one, count: of_rows(one.x.value, gram, False, count), group[0], counted):
            total = combine(total, part)
        return None if total is None else means(total)

    def _linear(self, seen: Sequence[Linear], statistics: Statistics | None) -> None:
        weight = seen[0].weight
        schemes = tuple(self.wanted[weight.name])
        rounded = {scheme: (scheme.weight, rotation_for(scheme, weight.k)) for scheme in schemes}
        specs = tuple(dict.fromkeys(rounded.values()))
        changes = self._changes(weight.values, specs, statistics)
        x = np.concatenate([one.x.value for one in seen])
        g = np.concatenate([_grad(one.y) for one in seen])
        by_sequence = (self.sequences, self.length, -1)
        rows = max(1, TILE_BYTES // (4 * weight.k * self.sequences))
        tiles = [slice(a, min(a + rows, weight.n)) for a in range(0, weight.n, rows)]
        sample, size = x[:: max(1, len(x) // ERROR_ROWS)], np.einsum("rn,rn->n", g, g) / np.float32(len(g))

        def project(tile: slice) -> tuple[np.ndarray, np.ndarray]:
            gradient = g[:, tile].reshape(by_sequence).swapaxes(1, 2) @ x.reshape(by_sequence)
            projected: np.ndarray = changes[:, tile].reshape(len(changes), -1) @ gradient.reshape(self.sequences, -1).T
            errors = [np.square(sample @ change.T).mean(axis=0) @ size[tile] for change in changes[:, tile]]
            return projected, np.array(errors, np.float64)

        projected, errors = (sum(parts) for parts in zip(*self._pool.map(project, tiles), strict=True))
        kl = steadied(self._squares(np.asarray(projected, np.float64)), 0.5 * np.asarray(errors))
        of_weights, of_inputs = dict(zip(specs, kl, strict=True)), self._inputs(schemes, weight.values, x, g)
        inputs = np.array([of_inputs[rounded_inputs(scheme)] for scheme in schemes])
        self.found[weight.name] = Sensitivity(schemes, np.array([of_weights[rounded[scheme]] for scheme in schemes]) + inputs, inputs)

    def _inputs(self, schemes: Sequence[Scheme], weight: np.ndarray, x: np.ndarray, g: np.ndarray) -> dict[TensorSpec | None, float]:
        """nats per token that rounding the inputs `x` [rows, k] of a weight costs, in each precision of them; `g`: gradients of its outputs [rows, n]."""
        found: dict[TensorSpec | None, float] = {None: 0.0}
        for spec in dict.fromkeys(map(rounded_inputs, schemes)):
            if spec is not None:
                dots = np.einsum("rk,rk->r", g @ weight, inputs_changed(x, spec), dtype=np.float64)
                found[spec] = 0.5 * float(np.square(dots).mean())
        return found

    def _changes(self, values: np.ndarray, specs: tuple[tuple[TensorSpec, int], ...], statistics: Statistics | None) -> np.ndarray:
        """What rounding to each spec, rotated in blocks of so many inputs (0: not), changes in a weight: float32 [specs, n, k]."""
        method, found = self.method, np.zeros((len(specs), *values.shape), np.float32)
        for block in dict.fromkeys(block for _, block in specs):
            mine = {i: spec for i, (spec, its) in enumerate(specs) if its == block and spec.quantized}
            if isinstance(method, BlockRounder):
                tensors = [quantize(values, spec, rotation=block) for spec in mine.values()]
            else:
                tensors = round_rotated(method, [values] * len(mine), list(mine.values()), statistics, self.threads, block)
            for i, tensor in zip(mine, tensors, strict=True):
                np.subtract(tensor.dequantize(), values, out=found[i])
        return found

    def _squares(self, projected: np.ndarray) -> np.ndarray:
        """nats per token, from projections [specs, sequences]."""
        mean: np.ndarray = 0.5 * np.square(projected).mean(axis=1) / self.length
        return mean

    # The outer weights -----------------------------------------------------------------------------------------------------------

    def _outer(self, ends: list[np.ndarray]) -> list[np.ndarray]:
        """The output layer into `found`; the gradients of -log p(drawn labels) with respect to the last layer's outputs."""
        name = EMBEDDING if self.model.tied else HEAD
        held: dict[str, np.ndarray] = {}
        tensors = Bound(TapeOps(1, 1), self.weights, held, self._tables)
        table = tensors.weight(name, self.model.vocab_size, self.model.hidden)
        most = max(1, LOGIT_BYTES // (4 * self.model.vocab_size))

        def through(at: int, x: np.ndarray) -> tuple[np.ndarray, Var]:
            """Normed inputs of the output layer, and x with its gradient."""
            ops = TapeOps(1, len(x))
            begin = Var(x)
            normed = self.model.norm(Bound(ops, self.weights, held, self._tables), begin, "model.norm", self.model.hidden)
            grad = np.concatenate([self._label_gradients(normed.value[a : a + most], table, held, at, a) for a in range(0, len(x), most)])
            ops.backward(normed, grad)
            return normed.value, begin

        done = list(self._pool.map(through, range(len(ends)), ends))
        if name in self.wanted:
            normed = np.concatenate([x for x, _ in done])
            count = min(HEAD_ROWS, most, len(normed))
            self._head(name, normed[np.linspace(0, len(normed) - 1, count).astype(int)], table.values)
        return [_grad(begin) for _, begin in done]

    def _logits(self, x: np.ndarray, table: Any, held: dict[str, np.ndarray]) -> tuple[TapeOps, Var, Var]:
        ops = TapeOps(1, len(x))
        begin = Var(x)
        tensors = Bound(ops, self.weights, held, self._tables)
        return ops, begin, head(tensors, begin, table.name.removesuffix(".weight"), self.model.vocab_size, self.model.hidden, self.model.logit_softcap)

    def _label_gradients(self, x: np.ndarray, table: Any, held: dict[str, np.ndarray], at: int, first: int) -> np.ndarray:
        ops, begin, logits = self._logits(x, table, held)
        p = _softmax(logits.value)
        draws = np.random.default_rng([self.seed, at, first]).random(len(x))
        for row, draw in enumerate(draws):
            cumulated = np.cumsum(p[row], dtype=np.float64)
            p[row, min(int(np.searchsorted(cumulated, draw * cumulated[-1], side="right")), p.shape[1] - 1)] -= 1
        ops.backward(logits, p)
        return _grad(begin)

    def _head(self, name: str, x: np.ndarray, table: np.ndarray) -> None:
        """1/2 of the variance under p of what rounding the output layer does to the logits, mean over `x` [rows, k]."""
        schemes, cap = tuple(self.wanted[name]), self.model.logit_softcap
        rounded = {scheme: (scheme.weight, rounded_inputs(scheme), rotation_for(scheme, x.shape[1])) for scheme in schemes}
        specs = tuple(dict.fromkeys(rounded.values()))
        seen = {spec: x if spec is None else x + inputs_changed(x, spec) for _, spec, _ in specs}
        logits = x @ table.T
        slope = None
        if cap:
            bent = np.tanh(logits / np.float32(cap))
            logits, slope = np.float32(cap) * bent, 1 - bent**2
        p = _softmax(logits)

        def moments(piece: slice) -> np.ndarray:
            found = np.empty((len(specs), 2, len(x)))
            for i, (spec, inputs, block) in enumerate(specs):
                change = seen[inputs] @ _change(table[piece], spec, block).T
                if inputs is not None:
                    change += (seen[inputs] - x) @ table[piece].T
                change = change if slope is None else change * slope[:, piece]
                weighted = p[:, piece] * change
                found[i] = weighted.sum(axis=1), np.einsum("rv,rv->r", weighted, change)
            return found

        both = np.sum(list(self._pool.map(moments, _pieces(len(table)))), axis=0)
        first, second = both[:, 0], both[:, 1]
        kl = dict(zip(specs, 0.5 * np.maximum(second - first**2, 0).mean(axis=1), strict=True))
        total = np.array([kl[rounded[scheme]] for scheme in schemes])
        self.found[name] = Sensitivity(schemes, total, np.zeros(len(schemes)))

    def _embedding(self, grads: list[np.ndarray]) -> None:
        """What rounding the rows of the drawn tokens does to the first layer; where the output layer is the same weight, in addition to that."""
        if EMBEDDING not in self.wanted:
            return
        schemes, tokens = tuple(self.wanted[EMBEDDING]), self.tokens.reshape(-1)
        grad = np.concatenate(grads) * np.float32(self.model.embed_factor)
        used, where = np.unique(tokens, return_inverse=True)
        rows = self.weights.rows(EMBEDDING, used)
        projected = np.stack([np.einsum("rk,rk->r", grad, _change(rows, scheme.weight, rotation_for(scheme, rows.shape[1]))[where]) for scheme in schemes])
        output = self.found[EMBEDDING].kl if self.model.tied else 0.0
        wide = projected.reshape(len(schemes), self.sequences, self.length).sum(axis=2, dtype=np.float64)
        self.found[EMBEDDING] = Sensitivity(schemes, self._squares(wide) + output, np.zeros(len(schemes)))


def rounded_inputs(scheme: Scheme) -> TensorSpec | None:
    """What a weight's inputs are rounded to; None: they are not. Those of a weight that stays as it is never are."""
    return scheme.activation if scheme.weight.quantized and scheme.activation.quantized else None


def inputs_changed(x: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """What rounding changes in inputs float32 [rows, k]. A static scale is the one that the usual observer finds for all of `x`."""
    if spec.rotated:
        block = rotation_of(x.shape[1])
        turned: np.ndarray = rotate(inputs_changed(rotate(x, block), replace(spec, rotated=False)), block)
        return turned
    scale = 0.0
    if is_static(spec) and spec.format == "int8":
        seen = Observer(USUAL)
        seen.update(x)
        scale = seen.fixed().scale
    elif is_static(spec):
        spec = replace(spec, granularity="tensor", dynamic=True)
    changed: np.ndarray = (round_activations(x, spec, scale) - x).astype(np.float32)
    return changed


def steadied(drawn: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Costs with less noise, both float64 [specs]: `drawn` from a few draws is right on average, and a program that picks the best of many would pick
    what was drawn too low; `errors`, sizes of output errors times sizes of gradients, has hardly any noise but ignores how errors of different outputs
    and tokens add up. How they do is a matter of the weight, not of the bits: so `errors` is multiplied by the mean ratio of the two."""
    known = (drawn > 0) & (errors > 0)
    if not known.any():
        return drawn
    factor = np.exp(np.log(drawn[known] / errors[known]).mean())
    return np.where(known, errors * factor, drawn)


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(a, min(a + PIECE, rows)) for a in range(0, rows, PIECE))


def _change(values: np.ndarray, spec: TensorSpec, block: int) -> np.ndarray:
    """What rounding to nearest changes, rotated in blocks of so many inputs (0: not); an unquantized precision means that the weight stays as it is stored."""
    change: np.ndarray = quantize(values, spec, rotation=block).dequantize() - values if spec.quantized else np.zeros_like(values)
    return change


def _grad(value: Var) -> np.ndarray:
    return np.zeros_like(value.value) if value.grad is None else value.grad


def _softmax(logits: np.ndarray) -> np.ndarray:
    p: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p
