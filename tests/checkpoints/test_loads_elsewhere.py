"""What the writers make is loaded by transformers, with the library of the format, and computes the numbers that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from octavo.checkpoints import WriterOptions, open_checkpoint, writers
from octavo.qtensor import quantize
from octavo.schemes import TensorSpec

from .quantized_folder import CODES, DTYPES, write_folder

CONFIG = LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, vocab_size=96,
                     max_position_embeddings=64, tie_word_embeddings=True)
GROUPS = TensorSpec("nf4", "group", 64)


def made(path: Path, target: str, spec: TensorSpec) -> tuple[Path, LlamaForCausalLM]:
    """(a model whose linears are `spec`, as the target's writer stores it; the same model with those numbers, in float32)."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights = {name: quantize(tensor.numpy(), spec) for name, tensor in state.items() if name.endswith("proj.weight")}
    config = {**CONFIG.to_dict(), "dtype": "float32"}
    writer = writers()[target](WriterOptions(config=config, specs=dict.fromkeys(weights, spec)))
    stored: dict[str, torch.Tensor] = {name: tensor for name, tensor in state.items() if name not in weights}
    for name, tensor in weights.items():
        assert writer.why_not(name, spec, tensor.shape) is None
        parts = writer.parts(name, spec, tensor.shape)
        arrays = {part: np.zeros(p.shape, CODES[p.dtype]) for part, p in parts.items()}
        writer.fill(name, tensor, 0, arrays)
        stored |= {part: torch.from_numpy(array).view(DTYPES[parts[part].dtype]) for part, array in arrays.items()}
        state[name].copy_(torch.from_numpy(tensor.dequantize()))
    kept = [name for name, tensor in stored.items() if tensor.ndim == 2 and name not in weights and name.endswith(".weight") and "proj" not in name]
    described = writer.config(dict.fromkeys(weights, spec), kept)
    write_folder(path, stored, None, {**config, **described})
    checkpoint = open_checkpoint(path)
    for name, tensor in weights.items():
        assert np.array_equal(checkpoint.read(name).dequantize(), tensor.dequantize()) or target == "bitsandbytes"
    return path, model


@pytest.mark.parametrize(("target", "spec", "tolerance"), [
    ("bitsandbytes", GROUPS, 1e-5), ("bitsandbytes", TensorSpec("fp4", "group", 64), 1e-5),
    ("bitsandbytes", TensorSpec("int8", "channel"), 0.1),  # whose inputs are int8 as well
    ("fp8", TensorSpec("fp8e4m3", "block", 128, 128), 1e-5), ("fp8", TensorSpec("fp8e4m3", "tensor"), 1e-5),
    ("mxfp4", TensorSpec("mxfp4", "group", 32, scale_format="e8m0"), 0.03),  # which the library gives out in bfloat16
])
def test_transformers_computes_the_same(target: str, spec: TensorSpec, tolerance: float, tmp_path: Path) -> None:
    path, expected = made(tmp_path, target, spec)
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16 if target == "mxfp4" else torch.float32, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for module in model.modules():  # on CPUs with AVX512_BF16, bitsandbytes would multiply in bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        theirs, ours = model(tokens).logits.float(), expected(tokens).logits
    assert torch.linalg.norm(theirs - ours) <= tolerance * torch.linalg.norm(ours)
