"""`--kv-cache auto`: the smallest key-value cache whose measured loss stays below what was asked.

For each layer and each candidate the loss is measured with that layer's cache alone in that precision: KL divergence from the model with a
bfloat16 cache, mean over the tokens of a short text. Losses of layers nearly add up, so the assignment is a knapsack with one item a layer, solved
exactly. What it promises is then measured as a whole; where it is worse than asked, the budget shrinks and it is solved again.

FP8 with dynamic scales is no candidate: it takes INT8's bytes and, with three bits of mantissa against seven, lost 5 to 20 times as much in every layer
of two models (docs/kv-cache.md). With the checkpoint's own scales (`Cfp8ts`) it takes fewer bytes, and is one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import PAGE, KVPool, Step
from ..errors import UsageError
from ..kernels.op import Problem
from ..schemes import CacheSpec, TensorSpec, cache_of, parse
from ..schemes._cache import Pair
from ._tuning import TEXT

if TYPE_CHECKING:
    from ._model import LoadedModel

NAMES = ("C16", "C8", "K8V4", "K4V8", "C4")
STATIC = ("Cfp8ts",)              # where the checkpoint has scales
FILE = "octavo-cache-loss.json"  # beside the copy of the model
RECIPE = 3                       # raised when a format stores other numbers than before: then losses are measured again
TOKENS, SKIPPED = 224, 16        # of the text; first tokens that are not counted
TRIES = 6


def pairs(names: Sequence[str]) -> list[Pair]:
    """(keys, values) of each candidate."""
    schemes = [parse(name) for name in names]
    return [(scheme.cache, scheme.cache_values) for scheme in schemes]


def candidates_for(loaded: LoadedModel) -> tuple[str, ...]:
    """The names of what a layer's cache may be: what the backend stores, the first of them bfloat16."""
    names = (*NAMES, *(STATIC if loaded.statics is not None else ()))
    return tuple(name for name, pair in zip(names, pairs(names), strict=True)
                 if all(loaded.backend.supports(Problem("attention", head_dim=dim, cache=half)) is None for dim in set(loaded.head_dims) for half in pair))


@dataclass(frozen=True)
class CacheChoice:
    """layers     name of a precision -> the layers that have it
    bytes_per_token, bytes_with_bf16   of context, of all layers
    kl, allowed   mean KL divergence from the same model with a bfloat16 cache, nats per token, measured with all layers so; and the limit
    tokens        that it was measured on
    """

    layers: dict[str, list[int]]
    bytes_per_token: int
    bytes_with_bf16: int
    kl: float
    allowed: float
    tokens: int

    def __str__(self) -> str:
        each = ", ".join(f"{name} in {'all layers' if len(self.layers) == 1 else f'layers {_ranges(layers)}' if len(layers) > 1 else f'layer {layers[0]}'}"
                         for name, layers in self.layers.items())
        return (f"key-value cache by sensitivity: {each}; {self.bytes_per_token} bytes per token instead of {self.bytes_with_bf16}; KL {self.kl:.2g} of "
                f"{self.allowed:.3g} allowed, measured on {self.tokens} tokens")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class CacheSearch:
    """What each layer loses in each candidate, measured once; then `choose` may be asked with several limits.

    names    of the candidates, bfloat16 first
    losses   nats per token, float64 [layers, names]: of each layer's cache alone
    sizes    bytes per token of context, [layers, names]
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded, self.names = loaded, candidates_for(loaded)
        self._pairs, layers = pairs(self.names), len(loaded.kv_heads)
        self._step = _step(loaded)
        self._truth = _log_softmax(self._logits(self._pairs[0][0]))
        losses = _kept(loaded.report.copy, layers, self.names)
        if losses is None:
            losses = np.zeros((layers, len(self.names)))
            for layer in range(layers):
                for index in range(1, len(self.names)):
                    alone = [self._pairs[index if i == layer else 0] for i in range(layers)]
                    losses[layer, index] = _loss(self._truth, self._logits(cache_of(alone)))
            _keep(loaded.report.copy, self.names, losses)
        self.losses = losses
        self.sizes = np.array([[KVPool.bytes_per_page([heads], [dim], cache_of([pair])) // PAGE for pair in self._pairs]
                               for heads, dim in zip(loaded.kv_heads, loaded.head_dims, strict=True)])

    def choose(self, max_kl: float) -> CacheChoice:
        """Set `loaded.cache_spec`, and say in its report what was chosen. Raises UsageError for a limit that is none."""
        if not 0 < max_kl < math.inf:
            raise UsageError(f"must be more than 0, not {max_kl}", where="--max-kl", remedy="such as 0.005 nats per token")
        budget = max_kl
        for _ in range(TRIES):
            chosen = solve(self.losses, self.sizes, budget)
            spec = cache_of([self._pairs[index] for index in chosen])
            measured = _loss(self._truth, self._logits(spec))
            if measured <= max_kl:
                return self._take(chosen, measured, max_kl)
            budget *= min(0.7, 0.9 * max_kl / measured)
        return self.give_up(max_kl)

    def give_up(self, max_kl: float) -> CacheChoice:
        """bfloat16 in all layers, which loses nothing."""
        return self._take([0] * len(self.sizes), 0.0, max_kl)

    def _take(self, chosen: list[int], measured: float, max_kl: float) -> CacheChoice:
        layers = {name: [layer for layer, index in enumerate(chosen) if index == place] for place, name in enumerate(self.names) if place in chosen}
        size = int(sum(self.sizes[layer, index] for layer, index in enumerate(chosen)))
        choice = CacheChoice(layers, size, int(self.sizes[:, 0].sum()), max(measured, 0.0), max_kl, len(self._truth))
        report = self.loaded.report
        if report.cache_choice in report.notes:
            report.notes.remove(report.cache_choice)
        self.loaded.cache_spec = cache_of([self._pairs[index] for index in chosen])
        report.cache_choice, report.cache_search, report.cache_format = str(choice), choice.to_json(), self.loaded.cache_spec.format
        report.kv_bytes_per_token = size
        report.notes.append(report.cache_choice)
        return choice

    def _logits(self, spec: TensorSpec | CacheSpec) -> np.ndarray:
        return np.asarray(self.loaded.forward(self._step, self.loaded.new_pool(self._step.tables.shape[1], spec)))


def solve(losses: np.ndarray, sizes: np.ndarray, budget: float) -> list[int]:
    """The candidate of each layer, from losses and bytes [layers, candidates]: fewest bytes whose losses sum to at most `budget`, and of these the least loss.

    Exact: for each number of bytes that can be, the least loss that gives it (sizes are whole multiples of their common divisor).
    """
    unit = int(np.gcd.reduce(sizes, axis=None)) or 1
    scaled = sizes // unit
    most = int(scaled.max(axis=1).sum())
    best = np.full(most + 1, np.inf)
    best[0] = 0.0
    taken = []
    for loss, size in zip(losses, scaled, strict=True):
        after, pick = np.full(most + 1, np.inf), np.zeros(most + 1, np.int64)
        for index, (one, width) in enumerate(zip(loss, size, strict=True)):
            moved = np.full(most + 1, np.inf)
            moved[width:] = best[: most + 1 - width] + max(float(one), 0.0)
            pick = np.where(moved < after, index, pick)
            after = np.minimum(moved, after)
        taken.append(pick)
        best = after
    fitting = np.flatnonzero(best <= budget)
    at = int(fitting[0]) if len(fitting) else most
    chosen = []
    for pick, size in zip(reversed(taken), reversed(list(scaled)), strict=True):
        chosen.append(int(pick[at]))
        at -= int(size[chosen[-1]])
    return chosen[::-1]


def _step(loaded: LoadedModel) -> Step:
    ids = [token for token in loaded.text.encode(TEXT) if 0 <= token < loaded.vocab_size] or [0]
    count = max(2, min(TOKENS, len(ids), loaded.max_model_len))
    rows = np.arange(count, dtype=np.int32)
    pages = -(-count // PAGE)
    return Step(np.resize(np.array(ids, np.int32), count), rows, rows, np.array([0, count], np.int32), np.array([count], np.int32),
                np.arange(pages, dtype=np.int32)[None, :], rows[min(SKIPPED, count // 2) :].copy())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _loss(truth: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence, nats per token."""
    return sum(float((np.exp(p) * (p - _log_softmax(row[None])[0])).sum()) for p, row in zip(truth, logits, strict=True)) / len(truth)


def _ranges(layers: Sequence[int]) -> str:
    """[0, 2, 3, 4] -> 0, 2-4."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _kept(folder: str, layers: int, names: Sequence[str]) -> np.ndarray | None:
    try:
        found = json.loads((Path(folder) / FILE).read_text()) if folder else {}
        losses = np.array(found["losses"], np.float64)
        known = found["recipe"] == RECIPE and found["candidates"] == list(names) and losses.shape == (layers, len(names))
        return losses if known and np.isfinite(losses).all() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: str, names: Sequence[str], losses: np.ndarray) -> None:
    path = Path(folder) / FILE
    try:
        if folder:
            path.write_text(json.dumps({"recipe": RECIPE, "candidates": list(names), "losses": losses.tolist()}))
    except OSError:
        return  # measured again at the next start
