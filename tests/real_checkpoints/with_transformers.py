"""transformers: bitsandbytes (NF4, FP4, INT8) and fine-grained FP8 folders, dequantized by bitsandbytes and by transformers' own FP8 reader.

    python tests/real_checkpoints/with_transformers.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden


def settings() -> dict[str, Any]:
    """kind -> quantization_config."""
    import torch
    from transformers import BitsAndBytesConfig, FineGrainedFP8Config

    def four(kind: str, nested: bool) -> Any:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested, bnb_4bit_compute_dtype=torch.bfloat16)

    return {"bitsandbytes-nf4": four("nf4", False), "bitsandbytes-nf4-double": four("nf4", True), "bitsandbytes-fp4": four("fp4", False),
            "bitsandbytes-fp4-double": four("fp4", True), "bitsandbytes-int8": BitsAndBytesConfig(load_in_8bit=True),
            "transformers-fp8": FineGrainedFP8Config(weight_block_size=(64, 64), modules_to_not_convert=["lm_head"])}


def quantize(source: Path, out: Path, config: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=config, device_map="cpu")
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)


def quantize_fp8(source: Path, out: Path, config: Any) -> None:
    """transformers quantizes to FP8 on a GPU only; its own operation on one tensor runs anywhere, and the files are written around it."""
    from types import SimpleNamespace

    from safetensors.torch import save_file
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    operation = Fp8Quantize(SimpleNamespace(quantization_config=config))
    tensors: dict[str, Any] = {}
    for name, value in golden.stored_tensors(source).items():
        tensors |= operation._quantize_one(name, value) if name.endswith("_proj.weight") else {name: value}
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    plain = json.loads((source / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**plain, "quantization_config": config.to_dict()}, indent=1))


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import bitsandbytes as bnb
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    if "fp8" in folder.name:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=FineGrainedFP8Config(dequantize=True))
        yield from ((name, value) for name, value in model.state_dict().items() if name.endswith("_proj.weight"))
        return
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu")
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.dtype = torch.float32
            yield f"{name}.weight", bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            yield f"{name}.weight", bnb.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)


def main(source: Path, out: Path, only: list[str]) -> None:
    for kind, config in settings().items():
        folder = out / kind
        if (only and kind not in only) or (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            (quantize_fp8 if "fp8" in kind else quantize)(source, folder, config)
        library = kind.partition("-")[0]
        maker = f"transformers {version('transformers')}" + (f" with bitsandbytes {version('bitsandbytes')}" if library == "bitsandbytes" else "")
        golden.write_golden(folder, maker, dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
