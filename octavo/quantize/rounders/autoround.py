"""autoround: learned rounding, layer by layer.

What it is: another rounder (GPTQ) gives a start, on weights that make good what rounding earlier layers has done (transform qep); then an offset for each
code and a factor for each scale are learned by gradients, of which little more than the sign counts, so that the outputs of the whole layer (attention and
feed-forward together), on inputs that carry all earlier rounding, come closest to those of the unrounded model. Sequences held out from learning decide
whether it went too far, so a layer never gets worse by it.
When to choose it: 2 bits with much calibration text for each weight, and time; at 3 bits it gained nothing over its start. LOG.md has what was measured.
Limits: integer codes with scales per group or row; needs torch; a pass forward and back through the layer for every step, so much slower than GPTQ. In
models with norms between a layer's outputs and the residual stream (Gemma) the start is kept: learning there ended far worse than it began.
Source: SignRound, arXiv 2309.05516. Ours: the start from GPTQ (arXiv 2210.17323) and qep (arXiv 2504.09629), which is what remains where learning gains
nothing; steps of Adam's form (arXiv 1412.6980) instead of signs, because where samples are few the sign of noise moves every code; the held-out judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ... import formats
from ...calibration import Block, Group, Statistics
from ...calibration.torch_ops import TorchOps, TorchTensors, import_torch
from ...errors import UsageError
from ...machine import give_back_freed
from ...qtensor import QTensor, round_scales
from ...schemes import TensorSpec
from ..method import Needs, round_group, rounder
from ..transforms.qep import Qep

Tensor = Any
MICRO = 512        # rows of one backward pass: what one thread works on; more rows are no faster, and keep more
EDGE = 0.3         # how far from its code a start may lie, in codes: noise alone must not carry it over the next threshold
DECAY, DECAY_SQUARE = 0.9, 0.95  # of the running means of the gradient and its square
HELD = 8           # one sequence in so many is not learned from; on those the stages are judged
STAGES = 4         # how often they are, at most: not after every single step
LEAST, MOST = 0.8, 1.25  # of the factors of scales


@dataclass(frozen=True)
class Autoround:
    """steps     of gradient descent for each layer
    batch        sequences a step
    rate         by which an offset moves in the first step, in codes; falls to 0 in a straight line. 0: 1 / steps
    scale_rate   the same for the factors of scales, as a part of `rate`
    relative     errors of a token count as parts of its size, which the next norm removes; else as they are
    start        the rounder that gives the first codes
    correct      it starts from weights that make good what earlier rounding has done (transform qep; models of plain pre-norm layers)
    seed         of the order of sequences
    """

    needs: ClassVar[Needs] = "gram"

    steps: int = 60
    batch: int = 8
    rate: float = 0.0
    scale_rate: float = 0.1
    relative: bool = True
    start: str = "gptq"
    correct: bool = True
    seed: int = 0
    remarks: list[str] = field(default_factory=list, init=False, compare=False, repr=False)

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        """One weight by itself, as the start rounds it."""
        return rounder(self.start).round(weight, spec, statistics)

    def round_block(self, block: Block, specs: Mapping[str, TensorSpec]) -> dict[str, QTensor]:
        for name, spec in specs.items():
            if formats.get(spec.format).kind != "int" or spec.granularity not in ("group", "channel"):
                raise UsageError(f"autoround learns integer codes with scales per group or row, not {spec.format} per {spec.granularity}", where=name,
                                 remedy="choose --method gptq")
        states = self._start(block, specs)
        block.forget()
        give_back_freed()
        if not states:
            return {}
        if not block.model.adds_outputs_as_they_are:
            self.remarks.append(f"nothing is learned in {type(block.model).__name__}, whose norms stand between a layer's outputs and the residual stream: "
                                f"the codes are those of {self.start}")
            return {name: state.tensor for name, state in states.items()}
        learned = _Learning(self, block, states).run()
        give_back_freed()  # graphs and gradients: more than the layer's rows take when it runs again
        return learned

    def _start(self, block: Block, specs: Mapping[str, TensorSpec]) -> dict[str, _State]:
        first, states = rounder(self.start), {}

        def visit(group: Group) -> list[np.ndarray] | None:
            if not any(matrix.name in specs for matrix in group.weights):
                return None
            if self.correct and not block.changes and block.model.adds_outputs_as_they_are:  # elsewhere it gains nothing
                Qep().retarget(block, group, specs)
            statistics = group.statistics(moments=False)
            mine = [matrix for matrix in group.weights if matrix.name in specs]
            wanted = [specs[matrix.name] for matrix in mine]
            tensors = round_group(first, [matrix.values for matrix in mine], wanted, statistics, block.blocks.ops.threads)
            states.update({matrix.name: _State(matrix.values, tensor) for matrix, tensor in zip(mine, tensors, strict=True)})
            return [states[matrix.name].tensor.dequantize() if matrix.name in states else matrix.values for matrix in group.weights]

        block.run(visit)
        return states


class _State:
    """What is learned of one weight W [n, k]: codes are round(W / (scale * factor) + offset) within their range."""

    def __init__(self, weight: np.ndarray, tensor: QTensor) -> None:
        torch = import_torch()
        spec, k = tensor.spec, weight.shape[1]
        assert tensor.scales is not None
        self.tensor, number = tensor, formats.get(spec.format)
        self.low, self.high = (number.low, number.high) if spec.symmetric else (0.0, 2.0**number.bits - 1)
        self.width = spec.size or k  # of a group
        columns = np.arange(k) // self.width
        scales = np.where(tensor.scales == 0, np.float32(1), tensor.scales)
        codes = tensor.codes.astype(np.float32)
        zeros = np.zeros_like(scales) if tensor.zeros is None else np.asarray(tensor.zeros, np.float32)
        place = np.clip(weight / scales[:, columns] + zeros[:, columns], codes - EDGE, codes + EDGE)
        self.weight = torch.from_numpy(np.ascontiguousarray(weight))
        self.scales, self.zeros = torch.from_numpy(np.ascontiguousarray(scales, np.float32)), torch.from_numpy(zeros)
        self.offset = torch.from_numpy((place - zeros[:, columns] - weight / scales[:, columns]).astype(np.float32))
        self.factor = torch.ones_like(self.scales)
        self.mean, self.square, self.steps = torch.zeros_like(self.offset), torch.zeros_like(self.offset), 0

    def spread(self, by_group: Tensor) -> Tensor:
        """[n, groups] -> [n, k]"""
        n, groups = by_group.shape
        return by_group.unsqueeze(-1).expand(n, groups, self.width).reshape(n, groups * self.width)[:, : self.weight.shape[1]]

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """(the weight that the codes stand for, the codes less their zero points, True where a code is free to move)."""
        torch = import_torch()
        scales = self.spread(self.scales * self.factor)
        place = self.weight / scales
        place += self.offset
        zeros = None if self.tensor.zeros is None else self.spread(self.zeros)
        if zeros is not None:
            place += zeros
        codes = torch.round(place).clamp_(self.low, self.high)
        free = place.sub_(codes).abs_() <= 0.5
        if zeros is not None:
            codes -= zeros
        return codes * scales, codes, free

    def step(self, gradient: Tensor, codes: Tensor, free: Tensor, rate: float, scale_rate: float) -> None:
        """One step against the gradient [n, k] of the loss by the weight's values, each as a part of its usual size."""
        torch = import_torch()
        scales = self.spread(self.scales)
        by_place = gradient * free
        by_offset = by_place * scales
        self.steps += 1
        self.mean.mul_(DECAY).add_(by_offset, alpha=1 - DECAY)
        self.square.mul_(DECAY_SQUARE).addcmul_(by_offset, by_offset, value=1 - DECAY_SQUARE)
        size = (self.square / (1 - DECAY_SQUARE**self.steps)).sqrt_().clamp_min_(1e-30)
        self.offset -= rate / (1 - DECAY**self.steps) * self.mean / size
        if scale_rate:
            by_factor = gradient * codes * scales - by_place * self.weight / self.spread(self.factor)
            n, groups = self.scales.shape
            missing = groups * self.width - by_factor.shape[1]  # in the last group
            sums = torch.nn.functional.pad(by_factor, (0, missing)).reshape(n, groups, self.width).sum(-1)
            self.factor = (self.factor - scale_rate * torch.sign(sums)).clamp_(LEAST, MOST)

    def result(self) -> QTensor:
        """The codes as they are now, with scales as they are stored."""
        torch = import_torch()
        scales = round_scales((self.scales * self.factor).numpy(), self.tensor.spec.scale_format)
        empty = np.asarray(self.tensor.scales) == 0
        place = self.weight / self.spread(torch.from_numpy(np.where(scales == 0, np.float32(1), scales)))
        place += self.offset
        if self.tensor.zeros is not None:
            place += self.spread(self.zeros)
        codes = place.round_().clamp_(self.low, self.high).numpy().astype(self.tensor.codes.dtype)
        if empty.any():
            columns = np.arange(self.weight.shape[1]) // self.width
            codes, scales = np.where(empty[:, columns], self.tensor.codes, codes), np.where(empty, np.float32(0), scales)
        return replace(self.tensor, codes=codes, scales=scales)


class _Learning:
    """The descent for one layer."""

    def __init__(self, method: Autoround, block: Block, states: dict[str, _State]) -> None:
        self.method, self.states = method, states
        blocks = block.blocks
        self.length, self.sequences = blocks.ops.length, len(blocks.ops.tokens)
        assert block.target is not None
        self.inputs = self._sequences(block.inputs)
        self.targets = self._sequences(block.target)
        ops = TorchOps(self.length)
        self.tensors = TorchTensors(ops, {}, block.tensors)
        self.forward: Callable[[Any, Tensor], Tensor] = lambda t, x: blocks.model.layer(t, x, block.layer)
        self.threads = blocks.ops.threads
        self.micro = max(1, MICRO // self.length)
        self.held = list(range(HELD - 1, self.sequences, HELD)) or [self.sequences - 1]
        self.learned = [i for i in range(self.sequences) if i not in self.held] or self.held

    def _sequences(self, node: Any) -> list[np.ndarray]:
        """Of each sequence float32 [length, width]: views, for there are as many numbers of them as of all else together."""
        chunks = [node.chunk(c).reshape(-1, self.length, node.width) for c in range(node.chunks)]
        return [sequence for chunk in chunks for sequence in chunk]

    def run(self) -> dict[str, QTensor]:
        torch = import_torch()
        method, states = self.method, self.states
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # several sequences at once instead: the sums are then the same for any number of threads
        try:
            with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                best = {name: state.tensor for name, state in states.items()}
                least = self._loss(pool, best)
                stages = min(STAGES, max(1, method.steps // 2))
                rate = method.rate or 1 / max(1, method.steps)
                random = np.random.default_rng(method.seed)
                judged = {method.steps * (i + 1) // stages for i in range(stages)}
                order: list[int] = []
                for step in range(method.steps):
                    while len(order) < min(method.batch, len(self.learned)):
                        order += random.permutation(self.learned).tolist()
                    batch, order = order[: method.batch], order[method.batch :]
                    now = rate * (1 - step / method.steps)
                    self._step(pool, batch, now)
                    if step + 1 in judged:
                        found = dict(zip(states, pool.map(_State.result, states.values()), strict=True))
                        if (loss := self._loss(pool, found)) < least:
                            best, least = found, loss
                return best
        finally:
            torch.set_num_threads(before)

    def _step(self, pool: ThreadPoolExecutor, batch: list[int], rate: float) -> None:
        known = dict(zip(self.states, pool.map(_State.values, self.states.values()), strict=True))
        gradients = self._gradients(pool, {name: values for name, (values, _, _) in known.items()}, batch)

        def move(name: str) -> None:
            _, codes, free = known[name]
            self.states[name].step(gradients[name], codes, free, rate, rate * self.method.scale_rate)

        list(pool.map(move, self.states))

    def _gradients(self, pool: ThreadPoolExecutor, values: dict[str, Tensor], batch: list[int]) -> dict[str, Tensor]:
        """Of the squared error by each weight, summed over the batch in its order."""
        torch = import_torch()

        def one(part: list[int]) -> list[Tensor]:
            leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
            out = self.forward(self.tensors.with_weights(leaves), self._rows(self.inputs, part))
            return list(torch.autograd.grad(self._distance(out, part).sum(), list(leaves.values())))

        total: list[Tensor] = []
        for found in pool.map(one, self._parts(batch)):
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
        return dict(zip(values, total, strict=True))

    def _loss(self, pool: ThreadPoolExecutor, tensors: Mapping[str, QTensor]) -> float:
        """Of the sequences that are held out."""
        torch = import_torch()
        values = pool.map(lambda tensor: torch.from_numpy(np.asarray(tensor.dequantize())), tensors.values())
        bound = self.tensors.with_weights(dict(zip(tensors, values, strict=True)))

        def one(part: list[int]) -> float:
            with torch.no_grad():
                out = self.forward(bound, self._rows(self.inputs, part))
                return float(self._distance(out, part).sum(dtype=torch.float64))

        return sum(pool.map(one, self._parts(self.held)))

    def _distance(self, out: Tensor, part: list[int]) -> Tensor:
        """Squared error of each row [rows], as a part of the row's mean square: what comes next norms its rows."""
        targets = self._rows(self.targets, part)
        squared = (out - targets).square().mean(dim=1)
        return squared / targets.square().mean(dim=1).clamp_min(1e-20) if self.method.relative else squared

    def _rows(self, sequences: list[np.ndarray], part: list[int]) -> Tensor:
        """[rows, width] of some of them."""
        rows: Tensor = import_torch().from_numpy(np.concatenate([sequences[i] for i in part]))
        return rows

    def _parts(self, batch: list[int]) -> Iterator[list[int]]:
        for at in range(0, len(batch), self.micro):
            yield batch[at : at + self.micro]


ROUNDER = Autoround
