"""FP8 checkpoints against transformers' own dequantization, and as it loads what is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize, _dequantize_fp8_weight

from octavo.checkpoints import Checkpoint, WriterOptions, open_checkpoint
from octavo.checkpoints.fp8 import CODEC
from octavo.errors import CheckpointError, UsageError
from octavo.schemes import TensorSpec

from .quantized_folder import Q, reopened, write_folder

E4M3 = torch.float8_e4m3fn
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
WHOLE = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def codes(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Every code but NaN."""
    bytes_ = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.where(bytes_ & 127 == 127, 0, bytes_).to(torch.uint8).view(E4M3)


def opened(path: Path, weight: torch.Tensor, scale: torch.Tensor, quantization: dict[str, Any], scale_name: str = "weight_scale_inv",
           more: dict[str, torch.Tensor] | None = None) -> Checkpoint:
    tensors = {f"{Q}.weight": weight, f"{Q}.{scale_name}": scale} | {f"{Q}.{name}": tensor for name, tensor in (more or {}).items()}
    return open_checkpoint(write_folder(path, tensors, quantization))


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (576, 192), (130, 300), (1, 1), (129, 7), (5, 1000)])
def test_blocks_are_transformers_numbers(shape: tuple[int, int], tmp_path: Path) -> None:
    grid = (-(-shape[0] // 128), -(-shape[1] // 128))
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float8_e8m0fnu)):
        scale = (torch.rand(grid, generator=torch.Generator().manual_seed(1)) + 1e-3).to(dtype)
        weight = codes(shape)
        expected = _dequantize_fp8_weight(weight, scale.float(), [128, 128], torch.float32).numpy()
        checkpoint = opened(tmp_path / str(i), weight, scale, BLOCKS)
        tensor = checkpoint.read(f"{Q}.weight")
        assert tensor.spec.granularity == "block" and np.array_equal(tensor.dequantize(), expected)
        if shape[0] > 128:
            assert np.array_equal(checkpoint.read(f"{Q}.weight", slice(128, shape[0])).dequantize(), expected[128:])
        if dtype == torch.float8_e8m0fnu:  # the same exponents as plain bytes
            bytes_ = opened(tmp_path / "bytes", weight, scale.view(torch.uint8), {**BLOCKS, "scale_fmt": "ue8m0"})
            assert np.array_equal(bytes_.read(f"{Q}.weight").dequantize(), expected)


def test_what_transformers_quantizes(tmp_path: Path) -> None:
    for i, x in enumerate((torch.randn(256, 128), torch.zeros(256, 128), torch.randn(256, 128) * 1e20)):
        quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=(128, 128), scale_fmt="float"))
        made = Fp8Quantize(quantizer).convert({f"{Q}.weight": x})  # type: ignore[arg-type]
        checkpoint = open_checkpoint(write_folder(tmp_path / str(i), made, BLOCKS))
        expected = Fp8Dequantize(quantizer)._dequantize_one(made[f"{Q}.weight"], made[f"{Q}.weight_scale_inv"]).numpy()
        assert np.array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected)
        again = reopened(checkpoint, CODEC, tmp_path / f"{i}again")
        assert all(torch.equal(a.view(torch.uint8), load_file(again.path / "model.safetensors")[name].view(torch.uint8)) for name, a in made.items())


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv"])
def test_one_scale_for_a_weight(name: str, tmp_path: Path) -> None:
    """AutoFP8 and transformers without blocks."""
    weight = codes((24, 40))
    inputs = "input_scale" if name == "weight_scale" else "activation_scale"
    for i, scale in enumerate((torch.tensor(0.25), torch.tensor([0.3]))):
        checkpoint = opened(tmp_path / str(i), weight, scale, WHOLE, name, {inputs: torch.tensor(0.5)})
        info = checkpoint.tensors[f"{Q}.weight"]
        assert info.spec is not None and info.spec.granularity == "tensor" and info.activation is not None and not info.activation.dynamic
        expected = _dequantize_fp8_weight(weight, scale.reshape(()), None, torch.float32).numpy()
        assert np.array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected)
        assert {k: v.item() for k, v in checkpoint.input_scales().items()} == {f"{Q}.weight": 0.5}  # type: ignore[attr-defined]
        again = reopened(checkpoint, CODEC, tmp_path / f"{i}again")
        assert np.array_equal(again.read(f"{Q}.weight").dequantize(), expected)


def test_cache_scales_are_told(tmp_path: Path) -> None:
    at = Q.removesuffix(".q_proj")
    tensors = {f"{Q}.weight": codes((8, 8)), f"{Q}.weight_scale": torch.tensor(1.0), f"{at}.k_scale": torch.tensor(0.1), f"{at}.v_scale": torch.tensor(0.2)}
    checkpoint = open_checkpoint(write_folder(tmp_path, tensors, {**WHOLE, "activation_scheme": "dynamic"}))
    assert checkpoint.cache is not None and checkpoint.cache.format == "fp8e4m3"
    assert "2 stored scales of the key-value cache" in checkpoint.notes[0] and list(checkpoint.tensors) == [f"{Q}.weight"]


def test_mxfp8_and_experts_in_mxfp4(tmp_path: Path) -> None:
    """DeepSeek-V4: `scale`, exponents, two values to a byte."""
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace())
    weight, scale = codes((6, 96)), torch.randint(110, 140, (6, 3), dtype=torch.uint8)
    checkpoint = opened(tmp_path / "a", weight, scale, {**BLOCKS, "weight_block_size": [1, 32], "scale_fmt": "ue8m0"})
    expected = Fp8Dequantize(quantizer)._dequantize_one(weight, scale, torch.float32)
    assert checkpoint.read(f"{Q}.weight").spec.format == "mxfp8" and np.array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected.numpy())
    packed = torch.randint(-128, 128, (6, 48), dtype=torch.int8)
    checkpoint = opened(tmp_path / "b", packed, scale.view(torch.float8_e8m0fnu), {**BLOCKS, "expert_dtype": "fp4"}, "scale")
    expected = Fp8Dequantize(quantizer)._dequantize_one(packed, scale, torch.float32)
    assert checkpoint.read(f"{Q}.weight").spec.format == "mxfp4" and np.array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected.numpy())
    assert np.array_equal(checkpoint.read(f"{Q}.weight", slice(2, 5)).dequantize(), expected.numpy()[2:5])


def test_fbgemm(tmp_path: Path) -> None:
    weight, scale = codes((24, 40)), torch.rand(24, 1) + 0.1
    checkpoint = opened(tmp_path, weight, scale, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "weight_scale")
    assert checkpoint.codec == "fbgemm_fp8" and checkpoint.tensors[f"{Q}.weight"].activation is not None
    assert np.array_equal(checkpoint.read(f"{Q}.weight").dequantize(), (weight.float() * scale).numpy())


def test_the_block_to_write() -> None:
    for variant, size in (("", (128, 128)), ("64x32", (64, 32))):
        assert CODEC.writer(WriterOptions(variant)).nearest(f"{Q}.weight", TensorSpec("bf16"), (8, 8)) == TensorSpec("fp8e4m3", "block", *size)
    for variant in ("64", "0x64", "64x", "axb", "64x999999"):
        with pytest.raises(UsageError, match="unknown block"):
            CODEC.writer(WriterOptions(variant))


ONES = torch.ones(1, 1)
HOSTILE: dict[str, tuple[dict[str, Any], torch.Tensor, dict[str, torch.Tensor], str]] = {
    "block": ({"weight_block_size": [0, 128]}, ONES, {}, "weight_block_size is"),
    "block text": ({"weight_block_size": "128"}, ONES, {}, "weight_block_size is"),
    "vast block": ({"weight_block_size": [1 << 40, 1]}, ONES, {}, "weight_block_size is"),
    "fmt": ({"fmt": "e5m2"}, ONES, {}, "fmt is 'e5m2'"),
    "scheme": ({"activation_scheme": "both"}, ONES, {}, "activation_scheme is 'both'"),
    "static": ({"activation_scheme": "static"}, ONES, {}, "activation_scale' is missing, though"),
    "grid": ({}, torch.ones(2, 1), {}, r"weight_scale_inv' has shape \[2, 1\], expected \[1, 1\]"),
    "rows": ({"weight_block_size": None}, torch.ones(7), {}, r"has shape \[7\], expected \[8, 1\]"),
    "type": ({}, torch.ones(1, 1, dtype=torch.int32), {}, "is of type I32"),
    "NaN": ({}, torch.full((1, 1), torch.nan), {}, "weight' holds NaN or infinity"),
    "inputs": ({"activation_scheme": "static"}, ONES, {"activation_scale": torch.ones(3)}, "holds more than one scale"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_ones(case: str, tmp_path: Path) -> None:
    changes, scale, more, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, codes((8, 8)), scale, {**BLOCKS, **changes}, more=more).read(f"{Q}.weight")
    assert str(caught.value).count("\n") == 0


def test_weights_without_scales_are_refused(tmp_path: Path) -> None:
    for tensor in (codes((8, 8)), codes((2, 8, 8))):
        with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{Q}\.weight' of type F8_E4M3 is quantized, but no scales"):
            open_checkpoint(write_folder(tmp_path, {f"{Q}.weight": tensor}, BLOCKS))
    with pytest.raises(CheckpointError, match="holds NaN"):
        opened(tmp_path, torch.full((8, 8), torch.nan).to(E4M3), ONES, BLOCKS).read(f"{Q}.weight")
