"""gpt-oss' experts against transformers' own unpacking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from octavo.checkpoints import WriterOptions, open_checkpoint
from octavo.checkpoints.mxfp4 import CODEC
from octavo.errors import CheckpointError
from octavo.schemes import TensorSpec

from .quantized_folder import reopened, write_folder

AT = "model.layers.0.mlp.experts"
CONFIG = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}


def stack(experts: int, rows: int, columns: int, low: int = 90, high: int = 160) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {"blocks": torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8),
            "scales": torch.randint(low, high, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)}


def folder(path: Path, gate_up: dict[str, torch.Tensor], down: dict[str, torch.Tensor]) -> Path:
    tensors = {f"{AT}.gate_up_proj_{name}": tensor for name, tensor in gate_up.items()} | {f"{AT}.down_proj_{name}": t for name, t in down.items()}
    tensors[f"{AT}.gate_up_proj_bias"] = torch.zeros(gate_up["blocks"].shape[:2], dtype=torch.bfloat16)
    return write_folder(path, tensors, CONFIG)


@pytest.mark.parametrize(("experts", "inner", "hidden"), [(1, 32, 32), (4, 64, 96), (3, 96, 2880)])
def test_every_expert_has_transformers_numbers(experts: int, inner: int, hidden: int, tmp_path: Path) -> None:
    gate_up, down = stack(experts, 2 * inner, hidden), stack(experts, hidden, inner, 120, 130)
    checkpoint = open_checkpoint(folder(tmp_path, gate_up, down))
    assert len(checkpoint.tensors) == 2 * experts + 1
    for projection, packed in (("gate_up_proj", gate_up), ("down_proj", down)):
        # transformers gives [experts, in, out] for x @ weight.
        expected = convert_moe_packed_tensors(packed["blocks"], packed["scales"], dtype=torch.float32).transpose(1, 2).numpy()
        in_bf16 = convert_moe_packed_tensors(packed["blocks"], packed["scales"]).transpose(1, 2).float().numpy()
        for expert in range(experts):
            name = f"{AT}.{expert}.{projection}.weight"
            info, tensor = checkpoint.tensors[name], checkpoint.read(name)
            assert info.shape == tensor.shape == expected.shape[1:] and tensor.spec.format == "mxfp4"
            assert info.nbytes == (packed["blocks"].numel() + packed["scales"].numel()) // experts
            assert np.array_equal(tensor.dequantize(), expected[expert]) and np.array_equal(tensor.dequantize(), in_bf16[expert])
            assert np.array_equal(checkpoint.read(name, slice(5, 9)).dequantize(), expected[expert, 5:9])
            checkpoint.release(name)


def test_extreme_exponents(tmp_path: Path) -> None:
    packed = stack(2, 64, 64, 0, 255)
    checkpoint = open_checkpoint(folder(tmp_path / "a", packed, stack(2, 32, 32)))
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # by the specification, in float64
    blocks, scales = packed["blocks"].numpy(), packed["scales"].numpy().astype(np.float64)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:3], 32)
    with np.errstate(over="ignore"):
        expected = (values[codes] * 2.0 ** (scales - 127)[..., None]).astype(np.float32).reshape(2, 64, 64)
    for expert in range(2):
        with np.errstate(over="ignore"):
            assert np.array_equal(checkpoint.read(f"{AT}.{expert}.gate_up_proj.weight").dequantize(), expected[expert])
    packed["scales"][1, 3, 1] = 255
    checkpoint = open_checkpoint(folder(tmp_path / "b", packed, stack(2, 32, 32)))
    checkpoint.read(f"{AT}.0.gate_up_proj.weight")
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{AT}\.1\.gate_up_proj\.weight' holds NaN"):
        checkpoint.read(f"{AT}.1.gate_up_proj.weight")


@pytest.mark.parametrize(("part", "broken", "message"), [
    ("scales", torch.zeros(2, 64, 3, dtype=torch.uint8), r"gate_up_proj_scales' has shape \[2, 64, 3\], expected \[2, 64, 2\]"),
    ("scales", torch.zeros(2, 64, 2), "is of type F32"), ("blocks", torch.zeros(2, 64, 2, 8, dtype=torch.uint8), "expected .any, any, any, 16"),
    ("blocks", torch.zeros(2, 64, 32, dtype=torch.uint8), "expected .any, any, any, 16"), ("blocks", torch.zeros(0, 64, 2, 16, dtype=torch.uint8), "no stack"),
])
def test_broken_stacks(part: str, broken: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder(tmp_path, {**stack(2, 64, 64), part: broken}, stack(2, 32, 32)))


def test_scales_without_blocks(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {f"{AT}.gate_up_proj_scales": stack(2, 64, 64)["scales"]}, CONFIG)
    with pytest.raises(CheckpointError, match="is quantized, but no scales"):
        open_checkpoint(path)


def test_experts_are_written_as_compressed_tensors(tmp_path: Path) -> None:
    source = open_checkpoint(folder(tmp_path / "a", stack(2, 64, 96), stack(2, 96, 32)))
    again = reopened(source, CODEC, tmp_path / "b")
    assert again.codec == "compressed_tensors" and len(again.tensors) == 4
    for name in again.tensors:
        assert again.read(name).spec == source.read(name).spec and np.array_equal(again.read(name).dequantize(), source.read(name).dequantize())
    writer = CODEC.writer(WriterOptions())
    assert "MXFP4 has groups of 32" in str(writer.why_not("x.weight", TensorSpec("int8", "channel"), (8, 64)))
    assert writer.nearest("x.weight", TensorSpec("bf16"), (8, 40)).format == "fp8e4m3"
