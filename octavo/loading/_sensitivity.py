"""`--kv-cache auto`: the smallest key-value cache whose measured loss stays below what was asked.

For each layer and each candidate the loss is measured with that layer's cache alone in that precision: KL divergence from the model with a
bfloat16 cache, mean over the tokens of a short text. Losses of layers nearly add up, so the assignment is a knapsack with one item a layer, solved
exactly. What it promises is then measured as a whole; where it is worse than asked, the budget shrinks and it is solved again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..cache import PAGE, KVPool, Step
from ..errors import UsageError
from ..schemes import CacheSpec, TensorSpec, cache_of, parse
from ..schemes._cache import Pair
from ._tuning import TEXT

if TYPE_CHECKING:
    from ._model import LoadedModel

NAMES = ("C16", "C8", "K8V4", "C4")
FILE = "octavo-cache-loss.json"  # beside the copy of the model
RECIPE = 2                       # raised when a format stores other numbers than before: then losses are measured again
TOKENS, SKIPPED = 224, 16        # of the text; first tokens that are not counted
TRIES = 6


def pairs() -> list[Pair]:
    """(keys, values) of each candidate."""
    schemes = [parse(name) for name in NAMES]
    return [(scheme.cache, scheme.cache_values) for scheme in schemes]


def choose(loaded: LoadedModel, max_kl: float) -> str:
    """Set `loaded.cache_spec`; returns what was chosen and why, in a sentence. Raises UsageError for a limit that is none."""
    if not 0 < max_kl < math.inf:
        raise UsageError(f"must be more than 0, not {max_kl}", where="--max-kl", remedy="such as 0.005 nats per token")
    candidates, layers = pairs(), len(loaded.kv_heads)
    step = _step(loaded)
    truth = _log_softmax(_logits(loaded, step, candidates[0][0]))
    losses = _kept(loaded.report.copy, layers)
    if losses is None:
        losses = np.zeros((layers, len(NAMES)))
        for layer in range(layers):
            for index in range(1, len(NAMES)):
                alone = [candidates[index if i == layer else 0] for i in range(layers)]
                losses[layer, index] = _loss(truth, _logits(loaded, step, cache_of(alone)))
        _keep(loaded.report.copy, losses)
    sizes = np.array([[KVPool.bytes_per_page([heads], [dim], cache_of([pair])) // PAGE for pair in candidates]
                      for heads, dim in zip(loaded.kv_heads, loaded.head_dims, strict=True)])
    budget = max_kl
    for _ in range(TRIES):
        chosen = solve(losses, sizes, budget)
        spec = cache_of([candidates[index] for index in chosen])
        measured = _loss(truth, _logits(loaded, step, spec))
        if measured <= max_kl:
            break
        budget *= min(0.7, 0.9 * max_kl / measured)
    else:
        chosen, spec, measured = [0] * layers, candidates[0][0], 0.0
    loaded.cache_spec = spec
    each = ", ".join(f"{name} in {chosen.count(index)}" for index, name in enumerate(NAMES) if index in chosen)
    size, plain = sum(sizes[layer, index] for layer, index in enumerate(chosen)), int(sizes[:, 0].sum())
    return (f"key-value cache by sensitivity: {each} of {layers} layers, {size} bytes per token instead of {plain}; KL {measured:.2g} of {max_kl:g} allowed, "
            f"measured on {len(truth)} tokens")


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


def _logits(loaded: LoadedModel, step: Step, spec: TensorSpec | CacheSpec) -> np.ndarray:
    return np.asarray(loaded.forward(step, loaded.new_pool(step.tables.shape[1], spec)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _loss(truth: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence, nats per token."""
    return sum(float((np.exp(p) * (p - _log_softmax(row[None])[0])).sum()) for p, row in zip(truth, logits, strict=True)) / len(truth)


def _kept(folder: str, layers: int) -> np.ndarray | None:
    try:
        found = json.loads((Path(folder) / FILE).read_text()) if folder else {}
        losses = np.array(found["losses"], np.float64)
        known = found["recipe"] == RECIPE and found["candidates"] == list(NAMES) and losses.shape == (layers, len(NAMES))
        return losses if known and np.isfinite(losses).all() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: str, losses: np.ndarray) -> None:
    path = Path(folder) / FILE
    try:
        if folder:
            path.write_text(json.dumps({"recipe": RECIPE, "candidates": list(NAMES), "losses": losses.tolist()}))
    except OSError:
        return  # measured again at the next start
