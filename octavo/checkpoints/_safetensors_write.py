"""safetensors files, laid out before their numbers are known: shards of a bounded size, the header of each, the index.

Within a file tensors stand by the width of their numbers, widest first, so that each is aligned without gaps (the format allows none).
Source: the safetensors README, "Format"; Hugging Face's sharded index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._quantized import DTYPES
from ._safetensors_header import BITS
from .base import Layout, Part
from .safetensors import INDEX

ALIGN = 64  # the numbers begin at a multiple of it: a cache line


def held(part: Part) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """(type, shape) of the array that holds a part's codes."""
    if part.held is not None:
        return np.dtype(part.held[0]), part.held[1]
    shape = part.shape if part.dtype != "F4" else (*part.shape[:-1], part.shape[-1] // 2)
    return np.dtype(DTYPES[part.dtype]), shape


def nbytes(part: Part) -> int:
    """Bytes of a part in its file."""
    dtype, shape = held(part)
    return dtype.itemsize * math.prod(shape)


def lay_out(parts: Mapping[str, Part], shard_size: int) -> list[Layout]:
    """The files that hold `parts`, in the order given, each of at most `shard_size` bytes of numbers unless one part alone has more."""
    groups: list[list[str]] = [[]]
    room = shard_size
    for name, part in parts.items():
        size = nbytes(part)
        if groups[-1] and size > room:
            groups.append([])
            room = shard_size
        groups[-1].append(name)
        room -= size
    count = len(groups)
    return [_file("model.safetensors" if count == 1 else f"model-{i + 1:05}-of-{count:05}.safetensors", {name: parts[name] for name in group})
            for i, group in enumerate(groups)]


def index_of(layouts: Sequence[Layout]) -> dict[str, Any]:
    """{file name: its contents}: the index that several shards need, nothing for one file."""
    if len(layouts) == 1:
        return {}
    total = sum(nbytes(part) for layout in layouts for _, part in layout.places.values())
    return {INDEX: {"metadata": {"total_size": total}, "weight_map": {name: layout.name for layout in layouts for name in layout.places}}}


def _file(name: str, parts: Mapping[str, Part]) -> Layout:
    order = sorted(parts, key=lambda n: (-BITS[parts[n].dtype], n))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for part in order:
        begins[part], end = end, end + nbytes(parts[part])
        entries[part] = {"dtype": parts[part].dtype, "shape": list(parts[part].shape), "data_offsets": [begins[part], end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGN)
    head = len(header).to_bytes(8, "little") + header
    return Layout(name, head, {part: (len(head) + begins[part], parts[part]) for part in order}, len(head) + end)
