"""From pieces of rows to one GpuWeight: what a weight needs on the GPU is its own room and a piece in the making."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ... import formats
from ...errors import KernelError
from ...qtensor import QTensor
from ...schemes import TensorSpec
from .linear_codes import scale_values
from .tiles import counters_for
from .weights import COLUMNS, GpuWeight, prepare


def assembled(parts: Iterable[QTensor], n: int, activation: TensorSpec, input_scale: float, device: torch.device | str) -> GpuWeight:
    """The weight [n, k] whose rows are those of the pieces, one after another; all of the same format, and what goes for columns is the first one's. Raises
    KernelError as `prepare` does, and where the pieces are not n rows."""
    first: GpuWeight | None = None
    codes = scales = offsets = None
    done = 0
    for part in parts:
        piece = prepare(part, activation, input_scale, device)
        if first is None:
            if piece.n == n:
                return piece
            first = replace(piece, codes=piece.codes[:0], scales=None, offsets=None)
            codes = torch.empty((n, piece.codes.shape[1]), dtype=piece.codes.dtype, device=device)
            scales = None if piece.scales is None else torch.empty((len(piece.scales), n), dtype=piece.scales.dtype, device=device)
            offsets = None if piece.offsets is None else torch.empty((len(piece.offsets), n), dtype=torch.float32, device=device)
        assert codes is not None
        rows = slice(done, done + piece.n)
        codes[rows] = piece.codes
        if scales is not None and piece.scales is not None:
            if scales.dtype != piece.scales.dtype:  # scales of some rows need more room than those of others
                scales = scale_values(scales)
                first = replace(first, spec=replace(first.spec, scale_format="fp32"))
            scales[:, rows] = piece.scales if scales.dtype == piece.scales.dtype else scale_values(piece.scales)
        if offsets is not None and piece.offsets is not None:
            offsets[:, rows] = piece.offsets
        done = rows.stop
        del piece
    if first is None or done != n:
        raise KernelError(f"has {done} of {n} rows", where="triton", remedy="the checkpoint is incomplete: fetch it again")
    assert codes is not None
    alike = n if first.spec.granularity == "tensor" else first.rows_alike
    return replace(first, n=n, codes=codes, scales=scales, offsets=offsets, rows_alike=alike, counters=counters_for(n, device))


def bytes_of(spec: TensorSpec, n: int, k: int) -> int:
    """Bytes of a GpuWeight of this precision, before there is one: what `prepare` makes of it, scales in the format's own width."""
    wide = -(-k // COLUMNS) * COLUMNS
    if not spec.quantized:
        return n * wide * (2 if spec.format == "bf16" else 4)
    number = formats.get(spec.format)
    bits = 8 if number.bits > 4 else 4 if number.kind == "table" or number.bits > 2 else 2
    group = spec.size if spec.granularity == "group" else spec.columns if spec.granularity == "block" else 0
    groups = -(-k // group) if group else 1
    width = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8e4m3": 2, "e8m0": 1}.get(spec.scale_format, 4)
    table = 16 * 4 if number.kind == "table" else 0
    return n * wide * bits // 8 + groups * n * (width + (0 if spec.symmetric else 4)) + table
