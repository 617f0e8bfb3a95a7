"""What else multiplies such weights: torch's own kernels, and libraries where they are installed.

A rival says for which precisions it stands, makes its form of the same weight, and multiplies. It is given what our kernel is given: x in bfloat16, or the same
rounded codes and scales (no rounding in anybody's time); libraries that round by themselves ("rounding included") are held against our time with rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from octavo.kernels.triton.rows import Rounded
from octavo.qtensor import QTensor


@dataclass(frozen=True)
class Weight:
    """q: the quantized weight [n, k]; values: the numbers it stands for, bfloat16."""

    q: QTensor
    values: torch.Tensor


@dataclass(frozen=True)
class Given:
    """x bfloat16 [rows, k]; rounded: what our kernel reads of it where activations are quantized."""

    x: torch.Tensor
    rounded: Rounded | None


@dataclass(frozen=True)
class Rival:
    name: str
    precisions: tuple[str, ...]
    prepare: Callable[[Weight], Any]
    multiply: Callable[[Any, Given], torch.Tensor]
    needs: str = ""           # a package
    rounds: bool = False      # its time includes rounding of activations
    alike: bool = True        # it computes with the same numbers, so its error can be judged
    slow: bool = False        # tunes itself for a long time: only where a bar is set


def installed(rival: Rival) -> bool:
    return not rival.needs or importlib.util.find_spec(rival.needs) is not None


def _library(name: str) -> Any:
    """An optional package, imported where it is used."""
    return importlib.import_module(name)


# -- torch -----------------------------------------------------------------------------------------------------------------------------------

def _scales(weight: Weight) -> torch.Tensor:
    assert weight.q.scales is not None
    found: torch.Tensor = weight.q.scales.to(torch.float32)
    return found


def _plain(weight: Weight) -> torch.Tensor:
    return weight.values.t()


def _int4pack(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
    """Two codes to a byte, the even column high; (code - 8) * scale + zero (aten/native/native_functions.yaml, _weight_int4pack_mm)."""
    codes = (weight.q.codes.to(torch.int16) + 8).to(torch.uint8)
    packed = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).contiguous(), 8)
    scales = _scales(weight).t().to(torch.bfloat16)
    return packed, torch.stack([scales, torch.zeros_like(scales)], dim=2).contiguous()


def _fp8(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
    codes, scales = weight.q.codes.view(torch.float8_e4m3fn).contiguous(), _scales(weight)
    if weight.q.spec.granularity == "block":
        return codes.t(), scales.reshape(-(-codes.shape[0] // 128), -1).contiguous().t()
    return codes.t(), scales.reshape(1, -1).contiguous()


def _scaled_mm(data: Any, given: Given, fast: bool = False) -> torch.Tensor:
    assert given.rounded is not None
    x, scales = given.rounded.codes.view(torch.float8_e4m3fn), given.rounded.scales
    by_row = scales.t() if given.rounded.group else scales.view(-1, 1)  # of 1 x 128 blocks those of a column lie together
    return torch._scaled_mm(x, data[0], by_row, data[1], out_dtype=torch.bfloat16, use_fast_accum=fast)


def _scaled_mm_fast(data: Any, given: Given) -> torch.Tensor:
    return _scaled_mm(data, given, True)


def _int8(weight: Weight) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.q.codes.contiguous().t(), _scales(weight).reshape(1, -1)


def _int_mm(data: Any, given: Given) -> torch.Tensor:
    assert given.rounded is not None
    return torch._int_mm(given.rounded.codes, data[0])


# -- libraries -------------------------------------------------------------------------------------------------------------------------------

def _call(layer: Any, given: Given) -> torch.Tensor:
    found: torch.Tensor = layer(given.x)
    return found


def _linear(weight: Weight) -> torch.nn.Linear:
    n, k = weight.values.shape
    layer = torch.nn.Linear(k, n, bias=False, device=weight.values.device, dtype=torch.bfloat16)
    layer.weight = torch.nn.Parameter(weight.values.clone(), requires_grad=False)
    return layer


def _gemlite_int4(weight: Weight) -> Any:
    gemlite = _library("gemlite")
    n, k = weight.values.shape
    layer = gemlite.GemLiteLinear(4, group_size=128, in_features=k, out_features=n, input_dtype=gemlite.DType.BF16, output_dtype=gemlite.DType.BF16)
    scales = _scales(weight).to(torch.bfloat16).reshape(-1, 1).contiguous()
    layer.pack((weight.q.codes.to(torch.int16) + 8).to(torch.uint8), scales, torch.full_like(scales, 8), None)
    return layer


def _gemlite(kind: str) -> Callable[[Weight], Any]:
    return lambda weight: getattr(_library("gemlite.helper"), kind)(device="cuda:0", dtype=torch.bfloat16).from_linear(_linear(weight))


def _nf4(weight: Weight) -> tuple[torch.Tensor, Any]:
    packed, state = _library("bitsandbytes.functional").quantize_4bit(weight.values.contiguous(), blocksize=64, quant_type="nf4")
    return packed.t(), state


def _matmul_nf4(data: Any, given: Given) -> torch.Tensor:
    found: torch.Tensor = _library("bitsandbytes").matmul_4bit(given.x, data[0], quant_state=data[1])
    return found


def _torchao(kind: str, **options: Any) -> Callable[[Weight], Any]:
    def prepare(weight: Weight) -> Any:
        library = _library("torchao.quantization")
        holder = torch.nn.Sequential(_linear(weight))
        library.quantize_(holder, getattr(library, kind)(**options))
        return holder

    return prepare


FLOATS = ("W4A16", "W8A16", "NF4", "MXFP4", "bf16")
RIVALS = (
    Rival("bf16 cuBLAS", (*FLOATS, "W8A8", "FP8 blocks", "FP8 rows", "W4Afp8", "W4A8"), _plain, lambda data, given: torch.mm(given.x, data)),
    Rival("torch int4pack_mm", ("W4A16",), _int4pack, lambda data, given: torch._weight_int4pack_mm(given.x, data[0], 128, data[1])),
    Rival("torch _scaled_mm", ("FP8 blocks", "FP8 rows"), _fp8, _scaled_mm),
    Rival("torch _scaled_mm, fast sums", ("FP8 rows",), _fp8, _scaled_mm_fast),
    Rival("torch _int_mm, without scales", ("W8A8",), _int8, _int_mm, alike=False),
    Rival("gemlite A16W4", ("W4A16",), _gemlite_int4, _call, "gemlite", slow=True),
    Rival("gemlite A8W8 INT8", ("W8A8",), _gemlite("A8W8_INT8_dynamic"), _call, "gemlite", rounds=True, slow=True),
    Rival("gemlite A8W8 FP8", ("FP8 rows",), _gemlite("A8W8_FP8_dynamic"), _call, "gemlite", rounds=True, slow=True),
    Rival("gemlite A16W4 MXFP4", ("MXFP4",), _gemlite("A16W4_MXFP"), _call, "gemlite", slow=True),
    Rival("bitsandbytes NF4", ("NF4", "W4A16"), _nf4, _matmul_nf4, "bitsandbytes", alike=False),
    Rival("torchao int4", ("W4A16",), _torchao("Int4WeightOnlyConfig", group_size=128, int4_packing_format="tile_packed_to_4d"), _call, "torchao", alike=False),
    Rival("torchao int8", ("W8A8",), _torchao("Int8DynamicActivationInt8WeightConfig"), _call, "torchao", rounds=True),
)
