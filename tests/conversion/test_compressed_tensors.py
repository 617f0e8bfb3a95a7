"""What is written as compressed-tensors loads in transformers with the library, and means the same numbers there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert

from .small_model import numbers

# Name, and what the library rounds to as it decompresses: it multiplies in the type of the scales, NVFP4 in bfloat16.
SCHEMES = {None: torch.bfloat16, "W4g128A16": torch.float16, "W3g64zA16": torch.float16, "W8A8": torch.float32, "Wfp8Afp8": torch.float32,
           "Wfp8b128x128Afp8": torch.float32, "Wnvfp4A16": torch.bfloat16, "Wmxfp4A16": torch.float32, "Wmxfp8Amxfp8": torch.float32}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_loads_in_transformers(scheme: str | None, model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    convert(model, tmp_path / "out", to="compressed-tensors", quantization=scheme)
    ours = numbers(tmp_path / "out")
    assert sum(info.spec is not None and info.spec.quantized for info in open_checkpoint(tmp_path / "out").tensors.values()) == 14
    load: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = load(tmp_path / "out", dtype=torch.float32, quantization_config=CompressedTensorsConfig(dequantize=True), output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    theirs = loaded.state_dict()
    for name, values in ours.items():
        assert torch.equal(torch.from_numpy(values).to(SCHEMES[scheme]).float(), theirs[name].to(SCHEMES[scheme]).float()), name


def test_zeros_in_nvfp4(model: Path, tmp_path: Path) -> None:
    """A weight of zeros has no second-level scale to divide by."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: torch.zeros_like(tensors[name])}, model / "model.safetensors", metadata={"format": "pt"})
    convert(model, tmp_path / "out", to="compressed-tensors", quantization="Wnvfp4A16")
    assert not np.any(open_checkpoint(tmp_path / "out").read(name).dequantize())
