"""Makes modelopt.safetensors: small layers quantized and exported by ModelOpt, and the weights that its quantizers compute with. Run where nvidia-modelopt
0.47.0 is installed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
from modelopt.torch.export.quant_utils import get_quant_config, postprocess_state_dict
from modelopt.torch.export.unified_export_hf import _export_quantized_weight
from modelopt.torch.quantization.qtensor import MXFP4QTensor, MXFP8QTensor, NVFP4QTensor
from safetensors.torch import save_file

CASES = {"fp8": "FP8_DEFAULT_CFG", "fp8_rows": "FP8_PER_CHANNEL_PER_TOKEN_CFG", "fp8_blocks": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
         "int8": "INT8_WEIGHT_ONLY_CFG", "int8_smooth": "INT8_SMOOTHQUANT_CFG", "int4_awq": "INT4_AWQ_CFG", "int4_awq_fp8": "W4A8_AWQ_BETA_CFG",
         "nvfp4": "NVFP4_DEFAULT_CFG", "nvfp4_awq": "NVFP4_DEFAULT_CFG", "nvfp4_weights": "W4A16_NVFP4_CFG", "nvfp4_fp8": "W4A8_NVFP4_FP8_CFG",
         "mxfp4_fp8": "W4A8_MXFP4_FP8_CFG", "mxfp8": "MXFP8_DEFAULT_CFG"}
LARGE = {"fp8_blocks": (256, 128)}


class Model(torch.nn.Module):
    def __init__(self, rows: int, columns: int, kind: str) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(columns, rows, bias=False)
        generator = torch.Generator().manual_seed(len(kind))
        self.q_proj.weight.data = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
        if kind != "mxfp4_fp8":  # whose scale of zeros is a logarithm of zero
            self.q_proj.weight.data[:, :64] *= torch.tensor([[0.0]] * 2 + [[1.0]] * (rows - 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x)


def dequantized(codes: torch.Tensor, scale: torch.Tensor, second: torch.Tensor | None) -> torch.Tensor:
    """By the library's own tensor of the form."""
    shape = torch.Size([codes.shape[0], codes.shape[1] * (1 if codes.dtype == torch.float8_e4m3fn else 2)])
    if second is not None:
        return NVFP4QTensor(shape, torch.float32, codes).dequantize(
            scale=scale, double_scale=second, block_sizes={-1: shape[1] // scale.shape[1]})
    kind = MXFP8QTensor if codes.dtype == torch.float8_e4m3fn else MXFP4QTensor
    return kind(shape, torch.float32, codes).dequantize(scale=scale, block_sizes={-1: 32})


def case(kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    model = Model(*LARGE.get(kind, (32, 128)), kind)
    inputs = torch.randn(64, model.q_proj.in_features, generator=torch.Generator().manual_seed(3)) * torch.logspace(-1, 1, model.q_proj.in_features)
    mtq.quantize(model, copy.deepcopy(getattr(mtq, CASES[kind])), lambda m: m(inputs))
    if kind == "nvfp4_awq":  # AWQ's search needs a GPU: the factors are ours, what becomes of them is the library's
        model.q_proj.input_quantizer.pre_quant_scale = torch.linspace(0.5, 2, model.q_proj.in_features)
    said = get_quant_config(model)
    linear = model.q_proj
    groups = CASES[kind].startswith(("NVFP4", "W4A16_NVFP4", "W4A8_NVFP4", "W4A8_MXFP4", "MXFP8"))  # whose quantizers need a GPU
    quantizer = linear.weight_quantizer[0] if kind == "int4_awq_fp8" else linear.weight_quantizer  # [1] rounds to FP8 once more; see modelopt.py
    expected = linear.weight if groups else quantizer(linear.weight.detach()).detach().clone()
    _export_quantized_weight(linear, torch.float32)
    state = postprocess_state_dict(model.state_dict(), 448.0, None)
    if groups:
        expected = dequantized(state["q_proj.weight"], state["q_proj.weight_scale"], state.get("q_proj.weight_scale_2"))
    return {f"{kind}/{name}": tensor.contiguous() for name, tensor in state.items()} | {f"{kind}/expected": expected}, said


if __name__ == "__main__":
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, Any] = {}
    for kind in CASES:
        made, said = case(kind)
        tensors |= made
        configs[kind] = {"hf_quant_config": said, "quantization_config": convert_hf_quant_config_format(said)}
        print(kind, said["quantization"], {name: (tuple(t.shape), t.dtype) for name, t in made.items()})
    save_file(tensors, Path(__file__).with_name("modelopt.safetensors"), {"configs": json.dumps(configs)})
