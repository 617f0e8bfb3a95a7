"""Stored scales of the key-value cache: which tensors they are, and what a checkpoint says of them so that none is lost without a word."""

from __future__ import annotations

import re

from ..schemes import TensorSpec, write_tensor
from ._quantized import QuantizedCheckpoint

# At the attention (AutoFP8, compressed-tensors) or at the projections (ModelOpt); one for both (kv_scale) in older files.
_NAMES = re.compile(r"\.(?:k|v|kv|q|prob)_scale$|\.[kv]_(?:bias|zero_point)$|\.[kv]_proj\.output_scale$")


def is_cache_scale(name: str) -> bool:
    """Whether a stored tensor of this name belongs to the cache (`k_proj.k_bias` does, the ordinary `k_proj.bias` does not)."""
    return _NAMES.search(name) is not None


def with_cache(checkpoint: QuantizedCheckpoint, cache: TensorSpec | None) -> QuantizedCheckpoint:
    """The checkpoint, told what its cache is quantized to; with a note on the scales that it stores."""
    names = [name for name in checkpoint.stored_names() if is_cache_scale(name)]
    checkpoint.cache = cache
    if names:
        checkpoint.notes = [*checkpoint.notes, f"{len(names)} stored scales of the key-value cache ({names[0]}, ...) belong to a cache of "
                                               f"{write_tensor(cache, 'cache') if cache is not None else 'no stated precision'}"]
    return checkpoint
