"""convolution: nn.Conv1d and nn.Conv2d, any stride, padding, dilation and groups.

What it is: the patches that the kernel sees, gathered a hundred at a time per thread, meet a linear's panels; outputs come channels last, as torch's own
memory format of that name, so that the next convolution reads them as they lie.
When to choose it: kernels with some dozens of inputs for each output and more.
Limits: depthwise convolutions (one input channel a group) stay in float: nine inputs are too few to gain anything. Transposed and 3-D ones stay too.
Source: Chellapilla et al., "High Performance Convolutional Neural Networks for Document Processing" (2006), section 2.1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...schemes import Scheme
from .._kind import WHOLE, Given, Wanted, vector, why_not_weight
from .._weight import Quantized, Weight, immediate

FEWEST_INPUTS = 16


def _pair(value: Any, one: int) -> list[int]:
    """Sizes down and across; a Conv1d is a picture of one line."""
    sizes = [int(v) for v in (value if isinstance(value, (tuple, list)) else (value,))]
    return [one, *sizes] if len(sizes) == 1 else sizes


class QuantizedConvolution(Quantized):
    """y [batch, n, ...] from x [batch, channels, ...], one picture or line without the batch as well."""

    kind = "convolution"

    def __init__(self, module: nn.Module, weights: list[Weight], bias: torch.Tensor | None, scheme: str) -> None:
        super().__init__()
        conv: Any = module
        self.flat = isinstance(conv, nn.Conv1d)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode
        self.parts = nn.ModuleList(weights)
        self.bias = vector(bias)
        self.scheme = scheme
        self._sizes = [_pair(conv.kernel_size, 1), _pair(conv.stride, 1), _pair(conv.dilation, 1)]
        self._sides = _sides(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dims = 1 if self.flat else 2
        single = x.dim() == dims + 1
        picture = x.unsqueeze(0) if single else x
        (up, down), (left, right) = self._sides
        if self.padding_mode != "zeros" and (up or down or left or right):
            picture = functional.pad(picture, (left, right) if self.flat else (left, right, up, down), mode=self.padding_mode)
            up = down = left = right = 0
        if self.flat:
            picture = picture.unsqueeze(2)
        lines = picture.detach().permute(0, 2, 3, 1)  # as channels last lies in memory
        pixels = (lines if lines.dtype == torch.float32 else lines.float()).contiguous().numpy()
        kernel, step, gap = self._sizes
        height = (pixels.shape[1] + up + down - gap[0] * (kernel[0] - 1) - 1) // step[0] + 1
        width = (pixels.shape[2] + left + right - gap[1] * (kernel[1] - 1) - 1) // step[1] + 1
        out = np.empty((len(pixels), max(height, 0), max(width, 0), self.out_channels), np.float32)
        each, made = self.in_channels // self.groups, self.out_channels // self.groups
        for g, part in enumerate(self.parts):
            assert isinstance(part, Weight)
            bias = None if self.bias is None else self.bias[g * made : (g + 1) * made]
            how = part.inputs
            immediate().convolution(part.native, pixels, self.derived(str(g), bias, part), out, kernel, step, gap, [up, left], g * each, each, g * made,
                                    how.group, how.fixed, how.zero_point, how.threshold)
        y = torch.from_numpy(out).permute(0, 3, 1, 2)
        y = y.squeeze(2) if self.flat else y
        y = y.squeeze(0) if single else y
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_channels} > {self.out_channels}, kernel {self.kernel_size}, stride {self.stride}, {self.scheme}"


def _sides(conv: Any) -> list[tuple[int, int]]:
    """Zeros before and after, down and across."""
    if conv.padding == "valid":
        return [(0, 0), (0, 0)]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(_pair(conv.dilation, 1), _pair(conv.kernel_size, 1))]
        return [(t // 2, t - t // 2) for t in totals]
    return [(p, p) for p in _pair(conv.padding, 0)]


def _matrix(module: Any) -> torch.Tensor:
    """[n, kernel rows * kernel columns * channels of a group]"""
    values: torch.Tensor = module.weight
    values = values.unsqueeze(2) if values.dim() == 3 else values
    return values.permute(0, 2, 3, 1).reshape(len(values), -1)


def _matrices(conv: Any) -> list[str]:
    """A name for the matrix of each group."""
    return [WHOLE] if conv.groups == 1 else [f"{WHOLE}.{g}" for g in range(conv.groups)]


class ConvolutionKind:
    name = "convolution"

    def replaces(self, module: nn.Module) -> bool:
        return type(module) in (nn.Conv1d, nn.Conv2d)

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None:
        if _matrix(module).shape[1] < FEWEST_INPUTS:
            return f"{_matrix(module).shape[1]} inputs for each output are too few to gain anything"
        return why_not_weight(scheme.weight)

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        return x.reshape(-1, 1)

    def met(self, module: nn.Module, given: Given) -> dict[str, torch.Tensor]:
        conv: Any = module
        x = given.x.unsqueeze(0) if given.x.dim() == conv.weight.dim() - 1 else given.x
        (up, down), (left, right) = _sides(conv)
        flat = x.dim() == 3
        mode = {} if conv.padding_mode == "zeros" else {"mode": conv.padding_mode}
        x = functional.pad(x, (left, right) if flat else (left, right, up, down), **mode)
        kernel, step, gap = (tuple(_pair(size, 1)) for size in (conv.kernel_size, conv.stride, conv.dilation))
        seen = functional.unfold((x.unsqueeze(2) if flat else x).float(), kernel, dilation=gap, stride=step)  # [batch, channels * cells, places]
        batch, _, places = seen.shape
        rows = seen.reshape(batch, -1, kernel[0] * kernel[1], places).permute(0, 3, 2, 1).reshape(batch * places, kernel[0] * kernel[1], -1)
        each = conv.in_channels // conv.groups
        return {name: rows[:, :, g * each : (g + 1) * each].reshape(len(rows), -1) for g, name in enumerate(_matrices(conv))}

    def build(self, module: nn.Module, wanted: Wanted) -> Quantized:
        conv: Any = module
        values = _matrix(conv)
        made = conv.out_channels // conv.groups
        weights = [wanted.weight(values[g * made : (g + 1) * made], name) for g, name in enumerate(_matrices(conv))]
        return QuantizedConvolution(conv, weights, conv.bias, str(wanted.scheme))

    def blank(self, module: nn.Module, scheme: Scheme, weights: dict[str, Weight], held: frozenset[str]) -> Quantized:
        parts = [weights[f"parts.{g}"] for g in range(len(weights))]
        conv: Any = module
        return QuantizedConvolution(conv, parts, torch.zeros(conv.out_channels) if "bias" in held else None, str(scheme))


LAYER = ConvolutionKind()
