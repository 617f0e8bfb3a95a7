"""What a model's key-value cache is told before the first token: static scales from the checkpoint, and the balance of its keys.

Balance. The channels of keys differ in size, some by a hundred times, and share an offset (KIVI, arXiv 2402.02750, therefore gives each channel its own
scale, which only a full page can have). Both are traits of the model: they are measured once, on a short text that lies here, as SmoothQuant does for
linears (arXiv 2211.10438). Of a channel with keys of size a (offset taken away) that meet queries of size b, keys are divided by sqrt(a / b) and queries
multiplied by it: then errors that are equal in all channels do the least harm to scores. The text is read at several places of the context, since rotary
embedding turns the offset. For 4 bits: which channels remain the largest, and the key of the first token (see cache.arranged).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache import PAGE, KVPool, Step, Tuning
from ..schemes import TensorSpec
from ..text.beginning import beginning

if TYPE_CHECKING:
    from ._model import LoadedModel

PLACES, TOKENS = 16, 96       # of the context where the text is read, from its beginning to its end; tokens at each
FILE = f"octavo-key-channels-{PLACES}-{{}}.npz"  # beside the copy of the model; of which context
SINKS = 4                     # first tokens, whose keys are like no others
FIRST = 8                     # tokens that are tried as the first of a text, where the tokenizer does not begin each with the same
FAR = 32768                   # tokens: beyond, offsets are measured for shorter contexts
LARGEST = 64.0                # by which a channel is scaled at most
TEXT = """The harbour froze in the second week of January, and for nine days nothing moved but the mail sled. Old Henrik, who had carried letters across the ice
since he was fourteen, said the trick was to listen: good ice rings, bad ice is silent. Nobody asked him how he had learned the second part.

def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2

Question: A train leaves at 9:40 and arrives at 13:05. It stops four times for six minutes. How long does it move?
Answer: From 9:40 to 13:05 there are 3 hours and 25 minutes, or 205 minutes. The stops take 4 * 6 = 24 minutes, so it moves for 205 - 24 = 181 minutes.

User: Which vinegar should I take for pickling cucumbers?
Assistant: White wine vinegar of at least five percent acid. Boil it with water, salt and a little sugar, pour it hot over the cucumbers, and wait.

In 1884 delegates of twenty-five countries met in Washington to agree on one meridian. France abstained, Haiti had voted against, and for a generation
ships still carried two sets of charts. {"name": "survey-7", "depth_m": [12.5, 13.1, 9.8], "valid": true, "notes": null} The river Po rises at Pian del Re,
2,022 metres above the sea, and reaches the Adriatic after 652 kilometres; its basin feeds a third of Italy's farms.
"""


class _Watching:
    """Ops that also store the queries of every layer, as the keys of a layer behind the others."""

    def __init__(self, ops: Any, layers: int) -> None:
        self._ops, self._layers = ops, layers
        self.heads: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def attention(self, q: Any, k: Any, v: Any, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0,
                  softcap: float = 0.0) -> Any:
        self.heads[layer] = heads
        y = self._ops.attention(q, k, v, layer, heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=scale, window=window, softcap=softcap)
        self._ops.attention(q, q, q, self._layers + layer, heads=heads, kv_heads=heads, head_dim=head_dim, scale=scale, window=1)
        return y


def measure(loaded: LoadedModel) -> list[np.ndarray]:
    """The balance of every layer: float32 [mean, inverse, gain, size, first][kv_heads][head_dim] (see cache.Tuning)."""
    layers, seen = len(loaded.kv_heads), []

    def describe(ops: Any) -> Any:
        watching = _Watching(ops, layers)
        seen.append(watching)
        return loaded.describe_on(watching)

    program = loaded.backend.capture(describe)
    step = _step(loaded)
    heads = [seen[-1].heads.get(layer, 0) for layer in range(layers)] if loaded.backend.name != "reference" else [0] * layers
    if not all(heads):  # a backend that describes anew at each run: one run tells
        heads = [loaded.model.config.get("num_attention_heads", 1)] * layers
    pool = loaded.backend.new_pool(int(step.tables.max()) + 1, [*loaded.kv_heads, *heads], [*loaded.head_dims, *loaded.head_dims], TensorSpec("fp32"))
    program.run(step, pool)
    taken = [(table, int(length)) for table, length in zip(step.tables, step.lengths, strict=True)]
    pieces, firsts = taken[:PLACES], taken[PLACES:]
    return [_balance(_stored(pool, layer, pieces), _stored(pool, layers + layer, pieces), _stored(pool, layer, firsts)) for layer in range(layers)]


def reach_of(loaded: LoadedModel) -> int:
    """Tokens of context that the text is spread over."""
    return min(loaded.max_model_len, FAR)


def _step(loaded: LoadedModel) -> Step:
    """As many pieces of the text as there are places of the context, each a sequence of its own; then first tokens, alone. Pieces overlap where it is short."""
    reach = reach_of(loaded)
    ids = [token for token in loaded.text.encode(TEXT) if 0 <= token < loaded.vocab_size] or [0]
    count = max(1, min(TOKENS, reach // 2, len(ids) // 4))
    stride = max(len(ids) - count, 0) // (PLACES - 1)
    places = [place * (reach - count) // (PLACES - 1) for place in range(PLACES)]
    pages = -(-count // PAGE)
    rows = np.arange(count)
    tokens = np.concatenate([np.resize(np.array([ids[0], *ids[1 + place * stride :]]), count) for place in range(PLACES)])
    firsts = beginning(loaded.text)[:1] or ids[:: -(-len(ids) // FIRST)]
    alone = len(firsts)
    tables = np.arange((PLACES + alone) * pages, dtype=np.int32).reshape(PLACES + alone, pages)
    slots = np.concatenate([*(table[rows // PAGE] * PAGE + rows % PAGE for table in tables[:PLACES]), tables[PLACES:, 0] * PAGE])
    return Step(tokens=np.concatenate([tokens, firsts]).astype(np.int32), slots=slots.astype(np.int32),
                positions=np.concatenate([*(rows + place for place in places), np.zeros(alone)]).astype(np.int32),
                starts=np.concatenate([np.arange(PLACES) * count, PLACES * count + np.arange(alone + 1)]).astype(np.int32),
                lengths=np.array([count] * PLACES + [1] * alone, np.int32), tables=tables, select=np.zeros(1, np.int32))


def _stored(pool: KVPool, layer: int, taken: Sequence[tuple[np.ndarray, int]]) -> np.ndarray:
    """float64 [heads, tokens, dim]: what was stored as keys, without the first tokens of each sequence where there are others."""
    parts = []
    for table, length in taken:
        found = pool.layers[layer].k[table].transpose(1, 0, 3, 2)
        parts.append(found.reshape(found.shape[0], -1, found.shape[3])[:, min(SINKS, length - 1) : length])
    return np.concatenate(parts, axis=1).astype(np.float64)


def _balance(keys: np.ndarray, queries: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """float32 [5, kv_heads, dim] from keys [kv_heads, tokens, dim], queries [heads, tokens, dim] and the keys of first tokens."""
    heads, _, dim = keys.shape
    mean = keys.mean(axis=1)
    key_size = np.sqrt(((keys - mean[:, None]) ** 2).mean(axis=1))
    query_size = np.sqrt((queries.reshape(heads, -1, dim) ** 2).mean(axis=1))
    sizes = np.stack([_floored(key_size), _floored(query_size)])
    gain = np.sqrt(sizes[0] / sizes[1])
    gain /= np.exp(np.log(gain).mean(axis=1, keepdims=True))
    gain = np.clip(gain, 1 / LARGEST, LARGEST).astype(np.float32)
    balance: np.ndarray = np.ascontiguousarray(np.stack([mean, np.float32(1) / gain, gain, sizes[0] / gain, firsts.mean(axis=1)]).astype(np.float32))
    if np.isfinite(balance).all():
        return balance
    ones = np.ones_like(gain)
    return np.stack([0 * ones, ones, ones, ones, 0 * ones])


def _floored(size: np.ndarray) -> np.ndarray:
    return np.maximum(size, np.maximum(1e-4 * size.max(axis=1, keepdims=True), 1e-30))


def static_scales(stored: Mapping[str, np.ndarray], layers: int) -> list[tuple[float, float]] | None:
    """(of keys, of values) of each layer, from the stored scales by name ("model.layers.0.self_attn.k"); None where one is missing or no single number."""
    found: dict[tuple[int, str], float] = {}
    for name, scale in stored.items():
        parts = name.split(".")
        numbers = [part for part in parts if part.isdigit()]
        if not numbers or scale.size != 1 or not np.isfinite(scale).all() or float(scale.reshape(-1)[0]) <= 0:
            return None
        found[int(numbers[0]), parts[-1]] = float(scale.reshape(-1)[0])
    wanted = [(layer, half) for layer in range(layers) for half in "kv"]
    return None if any(key not in found for key in wanted) else [(found[layer, "k"], found[layer, "v"]) for layer in range(layers)]


def kept(folder: str, reach: int) -> list[np.ndarray] | None:
    """The balance for this context that an earlier start left beside the model's copy, if it did."""
    path = Path(folder) / FILE.format(reach)
    try:
        with np.load(path, allow_pickle=False) as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]
    except (OSError, ValueError, KeyError):
        return None


def keep(folder: str, reach: int, balances: Sequence[np.ndarray]) -> None:
    """Leave it there; where that cannot be, the next start measures again."""
    path = Path(folder) / FILE.format(reach)
    try:
        with path.with_suffix(".part").open("wb") as file:
            np.savez(file, *balances)
        path.with_suffix(".part").replace(path)
    except OSError:
        path.with_suffix(".part").unlink(missing_ok=True)


def tuning(balances: Sequence[np.ndarray] | None, statics: Sequence[tuple[float, float]] | None, layers: int) -> list[Tuning]:
    return [Tuning(None if balances is None else balances[i], *(statics[i] if statics else (0.0, 0.0))) for i in range(layers)]
