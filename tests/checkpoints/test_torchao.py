"""torchao's weights taken apart: golden files by the library itself (make_torchao.py); Int4Tensor, whose maker needs a GPU, by FBGEMM's definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from octavo.checkpoints import Checkpoint, open_checkpoint
from octavo.errors import CheckpointError
from octavo.schemes import TensorSpec

GOLDEN = Path(__file__).with_name("golden") / "torchao.safetensors"
W = "q_proj.weight"
with safe_open(GOLDEN, "pt") as file:
    HEADERS: dict[str, dict[str, str]] = json.loads(file.metadata()["headers"])


def golden(kind: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    tensors = {name.removeprefix(f"{kind}/"): tensor for name, tensor in load_file(GOLDEN).items() if name.startswith(f"{kind}/")}
    return tensors, tensors.pop("expected").numpy()


def opened(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str]) -> Checkpoint:
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors", {"format": "pt", **header})
    (path / "config.json").write_text(json.dumps({"model_type": "test", "quantization_config": {"quant_method": "torchao"}}))
    return open_checkpoint(path)


SPECS = {"int8": TensorSpec("int8", "channel"), "int8_groups": TensorSpec("int8", "group", 32), "int8_dynamic": TensorSpec("int8", "channel"),
         "fp8": TensorSpec("fp8e4m3", "channel"), "fp8_tensor": TensorSpec("fp8e4m3", "tensor"), "intx4": TensorSpec("int4", "group", 32),
         "intx4_asymmetric": TensorSpec("int4", "group", 32, symmetric=False), "intx2_rows": TensorSpec("int2", "channel"),
         "intx8_asymmetric": TensorSpec("int8", "channel", symmetric=False), "intx4_dynamic": TensorSpec("int4", "group", 32)}
ACTIVATIONS = {"int8_dynamic": TensorSpec("int8", "token", dynamic=True), "intx4_dynamic": TensorSpec("int8", "token", symmetric=False, dynamic=True)}


@pytest.mark.parametrize("kind", HEADERS)
def test_numbers_are_the_librarys(kind: str, tmp_path: Path) -> None:
    tensors, expected = golden(kind)
    checkpoint = opened(tmp_path, tensors, HEADERS[kind])
    info, tensor = checkpoint.tensors[W], checkpoint.read(W)
    assert list(checkpoint.tensors) == [W] and info.spec == tensor.spec == SPECS[kind] and info.activation == ACTIVATIONS.get(kind)
    assert np.array_equal(tensor.dequantize(), expected)
    if tensor.spec.granularity != "tensor":
        assert np.array_equal(checkpoint.read(W, slice(5, 9)).dequantize(), expected[5:9])


def int4_tensor(x: torch.Tensor, group: int, zero: bool) -> tuple[dict[str, torch.Tensor], dict[str, str], np.ndarray]:
    """Int4Tensor by FBGEMM's definition: codes of 4 bits around 0, scale and offset per group, transposed."""
    rows, columns = x.shape
    grouped = x.reshape(rows, -1, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = ((high - low).clamp(min=1e-6) / 15) if zero else grouped.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 7
    offset = low + scale * 8 if zero else torch.zeros_like(scale)
    codes = ((grouped - offset) / scale).round().clamp(-8, 7)
    expected = (codes * scale + offset).reshape(rows, columns).numpy()
    flat = codes.to(torch.int8).reshape(rows, columns)
    packed = (flat[:, ::2] & 15) | (flat[:, 1::2] << 4)
    tensors = {"q_proj._weight_qdata": packed.contiguous(), "q_proj._weight_scale": scale[..., 0].T.contiguous(),
               "q_proj._weight_zero_point": offset[..., 0].T.contiguous()}
    said = {"_type": "Int4Tensor", "_data": {"block_size": [1, group], "shape": [rows, columns]}, "_tensor_data_names": ["qdata", "scale", "zero_point"]}
    return tensors, {W: json.dumps(said), "tensor_names": json.dumps([W])}, expected


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("group", [32, 64])
def test_int4(zero: bool, group: int, tmp_path: Path) -> None:
    tensors, header, expected = int4_tensor(torch.randn(24, 64, generator=torch.Generator().manual_seed(1)) + 1, group, zero)
    checkpoint = opened(tmp_path, tensors, header)
    tensor = checkpoint.read(W)
    assert tensor.spec.format == "int4" and tensor.spec.symmetric is not zero
    if zero:  # the offset is moved from the middle to the smallest code
        np.testing.assert_allclose(tensor.dequantize(), expected, rtol=0, atol=1e-6)
    else:
        assert np.array_equal(tensor.dequantize(), expected)
    assert np.array_equal(checkpoint.read(W, slice(5, 9)).dequantize(), tensor.dequantize()[5:9])


def changed(kind: str, **changes: Any) -> dict[str, str]:
    said = json.loads(HEADERS[kind][W])
    said |= {key: value for key, value in changes.items() if key.startswith("_")}
    if "_data" not in changes:
        said["_data"] |= {key: value for key, value in changes.items() if not key.startswith("_")}
    return {**HEADERS[kind], W: json.dumps(said)}


HOSTILE: dict[str, tuple[str, dict[str, Any], str]] = {
    "tiles": ("int8", {"_type": "Int4TilePackedTo4dTensor"}, "is of class 'Int4TilePackedTo4dTensor', whose layout is made for one kind of kernel"),
    "prototype": ("int8", {"_type": "NVFP4Tensor"}, "is of class 'NVFP4Tensor'"), "no data": ("int8", {"_data": 7}, "has no class, settings and parts"),
    "names": ("int8", {"_tensor_data_names": [1]}, "has no class, settings and parts"), "no part": ("int8", {"_tensor_data_names": ["scale"]}, "has no qdata"),
    "absent part": ("int8", {"_tensor_data_names": ["qdata", "scale", "act_quant_scale"]}, "_weight_act_quant_scale' is missing"),
    "block": ("int8", {"block_size": [1, 0]}, "has block_size"), "ragged": ("int8", {"block_size": [1, 48]}, "blocks of 1 x 48 do not divide"),
    "grid": ("int8", {"block_size": [1, 32]}, "blocks of 1 x 32 need 24 x 2"), "huge": ("int8", {"block_size": [1, 1 << 60]}, "do not divide"),
    "bits": ("intx4", {"target_dtype": {"_type": "torch.dtype", "_data": "int9"}}, "has target_dtype 'int9'"),
    "inputs": ("intx4", {"activation_quantization": "int2"}, "quantizes its inputs by 'int2'"),
    "inputs again": ("int8", {"act_quant_kwargs": {"_data": {"granularity": {"_type": "PerBlock"}}}}, "quantizes its inputs 'PerBlock'"),
    "codes": ("intx4", {"target_dtype": {"_type": "torch.dtype", "_data": "int3"}}, "holds codes beyond 3 bits"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_ones(case: str, tmp_path: Path) -> None:
    kind, changes, message = HOSTILE[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, golden(kind)[0], changed(kind, **changes)).read(W)
    assert str(caught.value).count("\n") == 0


def test_other_ways_to_store_them(tmp_path: Path) -> None:
    tensors, _ = golden("int8")
    with pytest.raises(CheckpointError, match="has no torchao metadata in its header"):
        opened(tmp_path / "a", tensors, {})
    with pytest.raises(CheckpointError, match=r"header: 'q_proj\.weight': is not JSON"):
        opened(tmp_path / "b", tensors, {W: "{", "tensor_names": "[]"})
    with pytest.raises(CheckpointError, match="is quantized, but no scales"):
        opened(tmp_path / "c", tensors, {"tensor_names": "[]"})
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds pickled weights \(pytorch_model\.bin\)"):
        open_checkpoint(tmp_path / "a")
