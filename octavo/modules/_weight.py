"""A weight matrix in panels, as a piece of a torch module: its bytes are a buffer, so `state_dict`, copies and pickles hold them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import _native, layouts
from ..errors import KernelError
from ..kernels.native import native_weight
from ..machine import detect
from ._inputs import Inputs

PATIENCE = 400  # microseconds


@cache
def team(threads: int) -> Any:
    """The native threads that all modules of this process share. A module is called for short bursts by who waits for it, so they spin longer for each other
    than a server's may: 5% of a sentence's time on a busy machine."""
    return _native.Team(threads, PATIENCE)


@cache
def _machine() -> tuple[int, str]:
    """(cores, instruction set), asked once: the answer takes a millisecond of reading files, and layers ask in every forward."""
    found = detect()
    return found.cores, found.isa


@cache
def _immediate(threads: int) -> Any:
    return _native.Immediate(team(threads), _machine()[1])


def threads() -> int:
    """As many as torch uses."""
    return max(1, min(torch.get_num_threads(), _machine()[0]))


def immediate() -> Any:
    """What runs single layers (csrc/immediate.h)."""
    return _immediate(threads())


class Weight(nn.Module):
    """A matrix [n, k] in the panel16 layout and how its inputs come.

    panels   uint8 buffer: the panels
    order    int64 [k] or None, factors float32 [k] or None: inputs are taken in this order and multiplied (in their own order) first
    """

    panels: torch.Tensor
    order: torch.Tensor | None
    factors: torch.Tensor | None

    def __init__(self, packed: layouts.Packed, inputs: Inputs) -> None:
        super().__init__()
        self.meta, self.inputs = packed.meta, inputs
        self.register_buffer("panels", torch.from_numpy(packed.blob))
        self.register_buffer("order", None if packed.order is None else torch.from_numpy(packed.order.astype(np.int64)))
        self.register_buffer("factors", None if packed.factors is None else torch.from_numpy(packed.factors))
        self._handle: Any = None
        self._made_of = 0

    @property
    def native(self) -> Any:
        """The kernels' handle, made anew when the buffer was replaced."""
        address = self.panels.data_ptr()
        if self._handle is None or self._made_of != address:
            self._handle, self._made_of = native_weight(self.packed().blob, self.meta), address
        return self._handle

    def packed(self) -> layouts.Packed:
        """The buffer as the rest of Octavo knows it. Raises KernelError where it is not in main memory."""
        if self.panels.device.type != "cpu":
            raise KernelError(f"the panels are on {self.panels.device}", where="quantized module", remedy="native kernels run on the CPU: module.cpu()")
        blob = self.panels.detach().numpy()
        if blob.ctypes.data % layouts.ALIGN:
            aligned = layouts.aligned(blob.nbytes)
            aligned[:] = blob
            blob = aligned
        order = None if self.order is None else self.order.numpy().astype(np.int32)
        return layouts.Packed(blob, self.meta, order, None if self.factors is None else self.factors.numpy())

    def dequantize(self) -> torch.Tensor:
        """float32 [n, k]: the numbers that the panels stand for."""
        return torch.from_numpy(np.ascontiguousarray(layouts.unpack(self.packed()).dequantize(), np.float32))

    def arranged(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [rows, k] as the columns of the panels want them."""
        if self.factors is not None:
            x = x * self.factors
        return x if self.order is None else x[:, self.order]

    def with_offset(self, bias: torch.Tensor | None) -> np.ndarray | None:
        """The bias that makes good for the zero point of fixed inputs: each output has too much of zero_point * scale * (sum of its weights)."""
        start = None if bias is None else bias.detach().float().numpy().astype(np.float64)
        if not self.inputs.zero_point:
            return None if start is None else np.ascontiguousarray(start, np.float32)
        sums = replace(layouts.unpack(self.packed()), factors=None).dequantize().astype(np.float64).sum(axis=1)  # of the panels, which meet the codes
        moved = -self.inputs.fixed * self.inputs.zero_point * sums
        return np.ascontiguousarray(moved if start is None else start + moved, np.float32)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def extra_repr(self) -> str:
        spec = self.meta.spec
        per = f" per {spec.granularity}" + (f" of {spec.size}" if spec.size else "")
        return f"{self.meta.n} x {self.meta.k}, {spec.format}{per}"


def version(tensor: torch.Tensor) -> tuple[int, int]:
    """What changes when a tensor is replaced or written to; of one made under inference_mode, which counts no writes, only the former."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Quantized(nn.Module):
    """Base of the layers that replace torch's: what they keep beside their buffers is derived, and made anew after a load."""

    kind = ""
    scheme: str

    def __init__(self) -> None:
        super().__init__()
        self._derived: dict[str, Any] = {}
        self.eval()

    def derived(self, name: str, bias: torch.Tensor | None, weight: Weight) -> np.ndarray | None:
        """The bias of `weight` with its inputs' zero point made good, kept until the bias changes."""
        stamp = (None if bias is None else version(bias), version(weight.panels))
        known = self._derived.get(name)
        if known is None or known[0] != stamp:
            known = self._derived[name] = (stamp, weight.with_offset(bias))
        result: np.ndarray | None = known[1]
        return result

    def weights(self) -> dict[str, Weight]:
        """Its packed weights by name."""
        return {name: part for name, part in self.named_modules() if isinstance(part, Weight)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": {}}


def rows_of(x: torch.Tensor, width: int) -> np.ndarray:
    """float32 [rows, width] of a tensor [..., width]; shares its memory where it can."""
    flat = x.detach().reshape(-1, width)
    return (flat if flat.dtype == torch.float32 else flat.float()).contiguous().numpy()
