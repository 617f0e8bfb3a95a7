"""Folders with FastDeploy's quantization_config: unquantized weights are read, weights in its kernels' order are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.checkpoints import open_checkpoint

from .int_files import AT, refused, write

PLAIN = {f"{AT}.weight": np.ones((8, 8), np.float32)}


@pytest.mark.parametrize("quantization", [{"quantization": "wint4"}, {"quantization": "mix_quant", "dense_quant_type": "wint8", "moe_quant_type": "wint4"},
                                          {"quantization": "wint8", "is_quantized": False}])
def test_weights_to_be_quantized_by_the_server(quantization: dict[str, Any], tmp_path: Path) -> None:
    tensors = {**PLAIN, "model.layers.0.self_attn.cachek_matmul.activation_scale": np.ones(4, np.float32)}
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, quantization, torch_dtype="bfloat16"))
    assert checkpoint.codec == "fastdeploy" and set(checkpoint.tensors) == set(PLAIN) and repr(quantization["quantization"]) in checkpoint.notes[0]
    np.testing.assert_array_equal(checkpoint.read(f"{AT}.weight").dequantize(), PLAIN[f"{AT}.weight"])


@pytest.mark.parametrize(("tensors", "quantization", "config", "parts"), [
    ({f"{AT}.quant_weight": np.zeros((4, 8), np.int8), f"{AT}.weight_scale": np.ones(8, np.float32)}, {"quantization": "wint4", "is_quantized": True}, {},
     ["model.safetensors", f"{AT}.quant_weight", "'wint4'", "unquantized model"]),
    ({"model.layers.3.mlp.experts.0.down_proj.quant_weight": np.zeros((4, 8), np.int8)}, {"quantization": "mix_quant", "moe_quant_type": "w4a8"}, {},
     ["experts.0.down_proj.quant_weight", "'mix_quant'"]),
    ({"model.layers.9.mlp.experts.0.down_proj.super_scales": np.zeros(4, np.float32)}, {"quantization": "wint2"}, {}, ["super_scales", "'wint2'"]),
    (PLAIN, {"quantization": "wint8", "is_quantized": True}, {"torch_dtype": "bfloat16"}, ["config.json", "is_quantized"]),
    (PLAIN, {"quantization": "wint8"}, {"dtype": "bfloat16"}, ["config.json", "Paddle's layout", "-PT"])])
def test_refused(tensors: dict[str, np.ndarray], quantization: dict[str, Any], config: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    refused(write(tmp_path / "m", tensors, quantization, **config), *parts)
