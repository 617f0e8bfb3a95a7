"""Between formats: exact means exact, whatever the pair; what another library makes of the result is the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import CheckpointError

from .small_model import numbers

Q = "model.layers.0.self_attn.q_proj.weight"
# source's format and precision -> the formats that hold the same numbers
SAME = [
    ("compressed-tensors", "W4g64A16", ("gptq", "awq", "compressed-tensors")), ("compressed-tensors", "W4g64zA16", ("gptq", "awq")),
    ("gptq", "W4g32A16", ("compressed-tensors", "awq", "gptq")), ("gptq", "W8g64A16", ("compressed-tensors", "gptq")),
    ("awq", "W4g128zA16", ("gptq", "compressed-tensors")), ("compressed-tensors", "Wfp8Afp8", ("modelopt",)),
    ("fp8", "Wfp8b128x128Afp8g128", ("compressed-tensors", "fp8")), ("modelopt", "Wnvfp4A16", ("modelopt", "compressed-tensors")),
    ("compressed-tensors", "Wnvfp4A16", ("compressed-tensors", "modelopt")), ("bitsandbytes", "WNF4g64A16", ("bitsandbytes",)),
    ("compressed-tensors", "Wmxfp4A16", ("compressed-tensors",)),
]


@pytest.mark.parametrize(("first", "scheme", "targets"), SAME, ids=lambda value: value if isinstance(value, str) else "")
def test_exact_is_exact(model: Path, tmp_path: Path, first: str, scheme: str, targets: tuple[str, ...]) -> None:
    convert(model, tmp_path / "first", to=first, quantization=scheme)
    before = numbers(tmp_path / "first")
    for target in targets:
        report = convert(tmp_path / "first", tmp_path / target, to=target)
        assert all(row.exact for row in report.rows)
        after = numbers(tmp_path / target)
        assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before), target


def test_a_second_level_scale_alone_is_rounded(model: Path, tmp_path: Path) -> None:
    """compressed-tensors divides by NVFP4's second scale, ModelOpt multiplies by it: not every number (Octavo's own choice, yes) has a float32 for both."""
    convert(model, tmp_path / "first", to="modelopt", quantization="Wnvfp4A16")
    file = tmp_path / "first" / "model.safetensors"
    stored = load_file(file)
    for number, name in enumerate(sorted(name for name in stored if name.endswith("weight_scale_2"))):
        stored[name] = stored[name] * (1.1 + 0.01 * number)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="second-level scale"):
        convert(tmp_path / "first", tmp_path / "out", to="compressed-tensors")
    report = convert(tmp_path / "first", tmp_path / "out", to="compressed-tensors", requantize=True)
    assert {row.written for row in report.rows if row.written.startswith("W")} == {"Wnvfp4"}
    before, after = open_checkpoint(tmp_path / "first"), open_checkpoint(tmp_path / "out")
    for name, info in before.tensors.items():
        one, other = before.read(name), after.read(name)
        assert np.array_equal(one.codes, other.codes)
        if info.parts:
            np.testing.assert_allclose(one.dequantize(), other.dequantize(), rtol=3e-7)


def test_rounded_anew(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "nf4", to="bitsandbytes")
    with pytest.raises(CheckpointError, match="14 weights exactly"):
        convert(tmp_path / "nf4", tmp_path / "out", to="gptq")
    convert(tmp_path / "nf4", tmp_path / "out", to="gptq", requantize=True)
    before, after = numbers(tmp_path / "nf4")[Q], numbers(tmp_path / "out")[Q]
    assert 0 < np.linalg.norm(before - after) < 0.15 * np.linalg.norm(before)


@pytest.mark.parametrize(("target", "scheme"), [("compressed-tensors", "W4A16"), ("compressed-tensors", "W8A8"), ("compressed-tensors", "Wfp8Afp8"),
                                                ("bitsandbytes", None), ("fp8", None)])
def test_transformers_loads_it(model: Path, tmp_path: Path, target: str, scheme: str | None) -> None:
    """With the matching library: the weights that it computes with are those that Octavo reads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config

    convert(model, tmp_path / "out", to=target, quantization=scheme)
    settings = {"fp8": FineGrainedFP8Config(dequantize=True), "compressed-tensors": CompressedTensorsConfig(run_compressed=False)}
    kept = {"quantization_config": settings[target]} if target in settings else {}
    assert AutoConfig.from_pretrained(tmp_path / "out").quantization_config["quant_method"] == target
    dtype = torch.bfloat16 if target == "fp8" else torch.float32  # as which the library dequantizes
    loaded, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype, output_loading_info=True, **kept)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    for name, values in numbers(tmp_path / "out").items():
        module = loaded.get_submodule(name.removesuffix(".weight"))
        weight = module.weight
        if target == "bitsandbytes" and weight.dtype == torch.uint8:
            import bitsandbytes

            weight = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        np.testing.assert_allclose(weight.detach().float().numpy(), values, rtol=2**-8, atol=1e-6, err_msg=name)
    assert torch.isfinite(loaded(torch.tensor([[1, 5, 9]])).logits).all()


@pytest.mark.parametrize("scheme", ["W4A16", "W4g64zA16", "W3g64A16", "W8A8", "Wfp8Afp8", "Wfp8b128x128Afp8g128", "Wnvfp4A16", "Wmxfp4A16"])
def test_compressed_tensors_own_decompressor(model: Path, tmp_path: Path, scheme: str) -> None:
    """The library's own decompression of each stored layer gives the numbers that Octavo reads."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    convert(model, tmp_path / "out", to="compressed-tensors", quantization=scheme)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    parsed = QuantizationConfig.model_validate(config)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    ours = numbers(tmp_path / "out")
    for group in parsed.config_groups.values():
        compressor = BaseCompressor.get_value_from_registry(group.format)
        for name in (Q, "model.layers.1.mlp.down_proj.weight"):
            prefix = name.removesuffix("weight")
            parts = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            found = compressor.decompress(parts, group)["weight"].to(torch.float32).numpy()
            np.testing.assert_allclose(found, ours[name], rtol=2**-8, atol=1e-7)  # it gives bfloat16 where scales are
