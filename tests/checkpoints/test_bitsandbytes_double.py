"""Double quantization as it is written: against the library's own table, quantizer and dequantizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, dequantize_blockwise, quantize_blockwise
from models.tiny import BASE, build, expected_logits, random_tokens
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from octavo.checkpoints import open_checkpoint
from octavo.checkpoints._bitsandbytes_scales import double_quantized, dynamic_table
from octavo.conversion import RefusedError, convert
from octavo.quantize import Wish, quantize

WEIGHT = "model.layers.1.mlp.down_proj.weight"


def test_the_table_is_the_librarys() -> None:
    assert np.array_equal(dynamic_table(), create_dynamic_map().numpy())


@pytest.mark.parametrize("count", [7, 256, 5000])
def test_scales_are_rounded_to_the_nearest_and_the_library_reads_them(count: int) -> None:
    scales = np.abs(np.random.default_rng(count).normal(0.05, 0.02, count)).astype(np.float32)
    codes, largest, mean = double_quantized(scales)
    theirs, state = quantize_blockwise(torch.from_numpy(scales) - torch.tensor(mean), blocksize=256)
    assert np.array_equal(state.absmax.numpy(), largest)
    apart = np.abs(theirs.numpy().astype(int) - codes)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005  # their search on a CPU is a little off beside the middles
    back = dynamic_table()[codes] * np.repeat(largest, 256)[:count] + mean
    assert np.array_equal(back, (dequantize_blockwise(torch.from_numpy(codes), state) + torch.tensor(mean)).numpy())
    table = dynamic_table().astype(np.float64)
    rest = (scales - mean).astype(np.float64) / np.repeat(np.where(largest == 0, 1, largest), 256)[:count]
    best = np.abs(rest[:, None] - table).min(axis=1)
    assert (np.abs(rest - table[codes]) <= best + 1e-7).all()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    build(folder, LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 1088, "num_hidden_layers": 2, "tie_word_embeddings": True}), torch.bfloat16)
    return folder


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_library_computes_what_was_written(original: Path, kind: str, tmp_path: Path) -> None:
    quantize(original, tmp_path / "out", Wish(f"W{kind}g64A16", "rtn"), to=f"bitsandbytes:{kind}-double", threads=2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_use_double_quant"] and config["bnb_4bit_quant_type"] == kind
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    parts = {name.removeprefix(f"{WEIGHT}."): part for name, part in tensors.items() if name.startswith(f"{WEIGHT}.")}
    assert parts["absmax"].dtype == torch.uint8 and len(parts["nested_absmax"]) == -(-len(parts["absmax"]) // 256)
    theirs = dequantize_4bit(tensors[WEIGHT], QuantState.from_dict(parts, torch.device("cpu")))
    ours = open_checkpoint(tmp_path / "out").read(WEIGHT).dequantize()
    assert torch.equal(theirs, torch.from_numpy(ours).to(theirs.dtype))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    plain = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    tokens = random_tokens(20)
    assert np.corrcoef(expected_logits(model, tokens).ravel(), expected_logits(plain, tokens).ravel())[0, 1] > 0.9


def test_converting_rounds_only_what_was_not_quantized(original: Path, tmp_path: Path) -> None:
    convert(original, tmp_path / "double", to="bitsandbytes:nf4-double")
    convert(original, tmp_path / "plain", to="bitsandbytes:nf4")
    one, other = (open_checkpoint(tmp_path / name).read(WEIGHT) for name in ("double", "plain"))
    assert one.scales is not None and other.scales is not None
    assert np.array_equal(one.codes, other.codes) and not np.array_equal(one.scales, other.scales)
    assert np.abs(one.scales / other.scales - 1).max() < 0.05
    with pytest.raises(RefusedError, match="double quantization rounds its scales"):
        convert(tmp_path / "plain", tmp_path / "again", to="bitsandbytes:nf4-double")
    convert(tmp_path / "plain", tmp_path / "again", to="bitsandbytes:nf4-double", requantize=True)
    assert np.isfinite(open_checkpoint(tmp_path / "again").read(WEIGHT).dequantize()).all()
