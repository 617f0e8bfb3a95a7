"""torchao through transformers: INT8, grouped INT4 and FP8 weights in its safetensors form, dequantized by torchao's own tensor classes.

    python tests/real_checkpoints/with_torchao.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden


def settings() -> dict[str, Any]:
    import torch
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    return {"int8": Int8WeightOnlyConfig(), "int8-dynamic": Int8DynamicActivationInt8WeightConfig(), "fp8": Float8WeightOnlyConfig(),
            "int4-g64": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(64))}


def quantize(source: Path, out: Path, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, device_map="cpu", quantization_config=TorchAoConfig(config))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    restored, _ = unflatten_tensor_state_dict(golden.stored_tensors(folder), metadata)
    for name, value in restored.items():
        if type(value) is not torch.Tensor and type(value) is not torch.nn.Parameter:
            yield name, in_float32(value)


def in_float32(value: Any) -> Any:
    """By the class's own dequantize(), told to give float32: its default is the model's bfloat16."""
    import inspect

    import torch

    if "output_dtype" in inspect.signature(value.dequantize).parameters:
        return value.dequantize(output_dtype=torch.float32)
    from torchao.quantization.quant_primitives import _DTYPE_TO_QVALUE_BOUNDS, dequantize_affine

    low, high = _DTYPE_TO_QVALUE_BOUNDS[value.target_dtype]  # IntxUnpackedToInt8Tensor: what its dequantize() does, in float32
    return dequantize_affine(value.qdata, value.block_size, value.scale.float(), value.zero_point, torch.int8, low, high, output_dtype=torch.float32)


def main(source: Path, out: Path, only: list[str]) -> None:
    for kind, config in settings().items():
        folder = out / f"torchao-{kind}"
        if (only and kind not in only) or (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, config)
        golden.write_golden(folder, f"torchao {version('torchao')} with transformers {version('transformers')}", dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
