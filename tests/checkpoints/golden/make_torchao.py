"""Makes torchao.safetensors: small layers quantized, taken apart for safetensors and dequantized by torchao itself. Run where torchao 0.18.0 is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerTensor,
    quantize_,
)

CASES: dict[str, Any] = {
    "int8": lambda: Int8WeightOnlyConfig(version=2), "int8_groups": lambda: Int8WeightOnlyConfig(granularity=PerGroup(32), version=2),
    "int8_dynamic": lambda: Int8DynamicActivationInt8WeightConfig(version=2), "fp8": lambda: Float8WeightOnlyConfig(), "fp8_tensor": None,
    "intx4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
    "intx4_asymmetric": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32), mapping_type=MappingType.ASYMMETRIC),
    "intx2_rows": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerAxis(0)),
    "intx8_asymmetric": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerGroup(64), mapping_type=MappingType.ASYMMETRIC),
    "intx4_dynamic": lambda: Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
}

if __name__ == "__main__":
    tensors: dict[str, torch.Tensor] = {}
    said: dict[str, dict[str, str]] = {}
    for seed, (kind, config) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(seed)
        model = torch.nn.Sequential()
        model.add_module("q_proj", torch.nn.Linear(64, 24, bias=False))
        model.q_proj.weight.data = torch.randn(24, 64, generator=generator) + 0.3
        if kind != "fp8":  # which makes NaN of a row of zeros
            model.q_proj.weight.data[2:4] = 0
        if kind == "fp8_tensor":  # its config wants a GPU
            model.q_proj.weight = torch.nn.Parameter(Float8Tensor.from_hp(model.q_proj.weight.data, granularity=PerTensor()), requires_grad=False)
        else:
            quantize_(model, config())
        flat, said[kind] = flatten_tensor_state_dict(model.state_dict())
        tensors |= {f"{kind}/{name}": tensor.contiguous() for name, tensor in flat.items()}
        tensors[f"{kind}/expected"] = model.q_proj.weight.dequantize().detach().float().contiguous()
        print(kind, said[kind], {name: (tuple(t.shape), t.dtype) for name, t in flat.items()})
    save_file(tensors, Path(__file__).with_name("torchao.safetensors"), {"headers": json.dumps(said)})
