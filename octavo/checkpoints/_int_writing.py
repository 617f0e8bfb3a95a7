"""What the writers of GPTQ and AWQ share: numbers of a QTensor as unsigned codes, whole zero points and float16 scales, or why they are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..qtensor import QTensor
from ..schemes import TensorSpec
from .base import InexactError

INTS = ("int2", "int3", "int4", "int8")
GROUPS = (128, 64, 32, 16)
ROWS = 32  # outputs, and inputs, that fill whole words at any bits; the libraries ask for such shapes


def why_not(spec: TensorSpec, shape: tuple[int, ...], formats: tuple[str, ...], method: str) -> str | None:
    """Why neither GPTQ nor AWQ holds a weight like this, or None."""
    if spec.format not in formats:
        return f"{method} holds integers of {', '.join(f.removeprefix('int') for f in formats)} bits"
    if spec.granularity not in ("tensor", "channel", "group"):
        return f"{method}'s scales are for groups or rows, not for {spec.granularity}s"
    if len(shape) != 2 or shape[0] % ROWS or shape[1] % ROWS:
        return f"{method}'s words hold multiples of {ROWS} inputs and outputs, this weight is {' x '.join(map(str, shape))}"
    if spec.granularity == "group" and shape[1] % spec.size:
        return f"{method}'s readers want groups that divide the inputs, and {spec.size} does not divide {shape[1]}"
    return None


def size_of(spec: TensorSpec) -> int:
    """group_size as the configs have it: -1 for one group a row."""
    return spec.size if spec.granularity == "group" else -1


def common_size(specs: Mapping[str, TensorSpec], formats: tuple[str, ...], config: Mapping[str, Any]) -> int:
    """The group size that most weights come in, else the largest usual one that divides the model's widths, else -1."""
    sizes = Counter(size_of(spec) for spec in specs.values() if spec.format in formats and spec.granularity in ("channel", "group"))
    if sizes:
        return sizes.most_common(1)[0][0]
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    heads, head = (inner or {}).get("num_attention_heads"), (inner or {}).get("head_dim")
    widths = [v for v in ((inner or {}).get("hidden_size"), (inner or {}).get("intermediate_size"),
                          heads * head if isinstance(heads, int) and isinstance(head, int) else None) if isinstance(v, int) and v > 0]
    return next((g for g in GROUPS if all(width % g == 0 for width in widths)), -1)


def sized(format: str, size: int, shape: tuple[int, ...], symmetric: bool) -> TensorSpec:
    """A spec of `format` with float16 scales in groups of `size`, or the largest usual length that divides the inputs."""
    width = shape[-1]
    size = next((g for g in (size, *GROUPS) if g > 0 and width % g == 0), -1) if size != -1 else -1
    if size == -1:
        return TensorSpec(format, "channel", symmetric=symmetric, scale_format="fp16")
    return TensorSpec(format, "group", size, symmetric=symmetric, scale_format="fp16")


def unsigned(tensor: QTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes [rows, in] uint8, zero points [rows, groups] uint8, scales [rows, groups] float16) of a tensor that `why_not` let pass.

    Raises InexactError where these numbers cannot be written so.
    """
    assert tensor.scales is not None
    bits, rows = tensor.spec.bits, tensor.shape[0]
    if tensor.factors is not None:
        raise InexactError("its inputs are scaled, and the format has no place for the factors", remedy="requantize it")
    if tensor.offsets is not None:
        raise InexactError("its groups have offsets, and the format has whole zero points", remedy="requantize it")
    scales = np.broadcast_to(np.asarray(tensor.scales, np.float32), (rows, np.asarray(tensor.scales).shape[1]))
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16)
    if not np.array_equal(narrow.astype(np.float32), scales):
        row, group = (int(i[0]) for i in np.nonzero(narrow.astype(np.float32) != scales))
        raise InexactError(f"the scale of row {row}, group {group} is {scales[row, group]:.9g}, and the format's scales are float16", remedy="requantize it")
    middle = np.uint8(1 << (bits - 1))
    if tensor.spec.symmetric:
        codes = np.asarray(tensor.codes).view(np.uint8) + middle
        return codes, np.full(scales.shape, middle, np.uint8), narrow
    zeros = np.broadcast_to(np.asarray(tensor.zeros, np.float32), scales.shape)
    whole = zeros.astype(np.uint8, casting="unsafe") if bool(((zeros >= 0) & (zeros < 1 << bits)).all()) else None
    if whole is None or not np.array_equal(whole.astype(np.float32), zeros):
        raise InexactError(f"its zero points are not all whole numbers from 0 to {(1 << bits) - 1}", remedy="requantize it")
    return np.asarray(tensor.codes), whole, narrow
