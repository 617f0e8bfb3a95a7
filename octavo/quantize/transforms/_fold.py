"""Folding: factors of the input channels of linears, moved into what computes the input, so that the model stays the same function.

The linears' columns are multiplied by the factors; a norm's gain, or the rows of the value or up projection, is divided by them. What will be stored in 16
bits (gains, biases) is rounded first, and the factor is taken from what that left: so nothing is lost by storing it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ... import formats
from ...calibration import Block, Source
from ...schemes import Scheme

ROWWISE = ("channel", "group")  # granularities whose scales follow a factor of a row


def columns(source: Source, k: int) -> np.ndarray:
    """int [k]: which factor each input channel takes. Query heads that share a key-value head share its factors."""
    if source.kind != "attention":
        return np.arange(k)
    heads = np.arange(source.heads) // (source.heads // source.kv_heads)
    return (heads[:, None] * source.head_dim + np.arange(source.head_dim)).reshape(-1)


def why_not(source: Source | None, names: list[str], schemes: Mapping[str, Scheme]) -> str | None:
    """The reason why linears `names` with this source take no factors, or None."""
    if source is None:
        return "their input is not computed by something that takes factors"
    if any(name not in schemes for name in names):
        return "one of them stays as it is, and its 16 bits would round the factors"
    if source.kind != "norm" and source.name in schemes and schemes[source.name].weight.granularity not in ROWWISE:
        return f"rows of {source.name} share scales"
    return None


def fold(block: Block, source: Source, names: list[str], factors: np.ndarray, schemes: Mapping[str, Scheme]) -> np.ndarray:
    """Multiply the input channels of the linears `names` by about `factors` [channels of the source], above 0, and undo it in the source.

    Returns the factors taken, float32 [k]. Call it where `why_not` says None. Channels whose gain is 0 stay: nothing flows there.
    """
    tensors = block.tensors
    if source.kind == "norm":
        taken = _into_gain(block, source, factors)
    else:
        exact = factors if source.name in schemes else np.exp2(np.round(np.log2(factors)))  # a weight that stays in 16 bits keeps its significands
        taken = _into_rows(block, source.name, exact.astype(np.float64))
    spread = taken[columns(source, tensors[names[0]].shape[1])]
    for name in names:
        tensors[name] = (tensors[name] * spread).astype(np.float32)
    return spread.astype(np.float32)


def _into_gain(block: Block, source: Source, factors: np.ndarray) -> np.ndarray:
    """The gain over the factors, as it will be stored; float64 what was divided by."""
    offset = np.float32(source.offset)
    gain = block.tensors[source.name]
    old = gain + offset
    new = _stored(block, source.name, (old / factors.astype(np.float64) - offset).astype(np.float32))
    alive = (old != 0) & (new + offset != 0)
    block.tensors[source.name] = np.where(alive, new, gain)
    taken: np.ndarray = np.where(alive, old.astype(np.float64) / np.where(alive, new + offset, 1), 1.0)
    return taken


def _into_rows(block: Block, name: str, factors: np.ndarray) -> np.ndarray:
    """The rows of a weight, and its bias, over the factors."""
    bias = f"{name.removesuffix('.weight')}.bias"
    if bias in block.tensors:
        old = block.tensors[bias]
        new = _stored(block, bias, (old / factors).astype(np.float32))
        alive = new != 0
        factors = np.where(alive, old.astype(np.float64) / np.where(alive, new, 1), factors)
        block.tensors[bias] = new
    block.tensors[name] = (block.tensors[name] / factors[:, None]).astype(np.float32)
    return factors


def _stored(block: Block, name: str, values: np.ndarray) -> np.ndarray:
    """`values` in the precision that the file has for this vector."""
    number = formats.get(block.stored_format(name))
    kept: np.ndarray = np.asarray(number.decode(number.encode(values)), np.float32)
    return kept
