"""llm-compressor: GPTQ, AWQ, SmoothQuant and rounding, written as compressed-tensors.

    python benchmarks/quality/with_llmcompressor.py MODEL IDS.npy OUT NAME [--rows 128] [--group 128]

The model is loaded in float32, but for --dtype bfloat16: that is emulated, and ten times slower, on processors without its instructions.

NAME: method-scheme, such as gptq-w4g128 or awq-w4g128z (z: with zero points).
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import record

METHODS = ("rtn", "gptq", "awq", "awq-gptq", "smoothquant-gptq", "smoothquant")
SCHEMES = tuple(f"w{bits}g{group}{zero}" for bits in (2, 3, 4) for group in (32, 64, 128) for zero in ("", "z")) + ("w8a8", "w4g32a8", "w4g64a8", "w4g128a8")


def groups(scheme: str) -> dict[str, Any]:
    """The config group of a scheme's name."""
    found = re.fullmatch(r"w(\d)(?:g(\d+))?(z?)(?:a(\d))?", scheme)
    if found is None:
        raise SystemExit(f"unknown scheme {scheme}")
    bits, group, zero, act = found.groups()
    weights: dict[str, Any] = {"num_bits": int(bits), "type": "int", "symmetric": not zero, "strategy": "group" if group else "channel"}
    if group:
        weights["group_size"] = int(group)
    result: dict[str, Any] = {"targets": ["Linear"], "weights": weights}
    if act:
        result["input_activations"] = {"num_bits": int(act), "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {"group_0": result}


def recipe(method: str, scheme: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    steps: list[Any] = []
    if "smoothquant" in method:
        steps.append(SmoothQuantModifier(smoothing_strength=0.8))
    if "awq" in method:
        steps.append(AWQModifier())
    last = GPTQModifier if "gptq" in method else QuantizationModifier
    return [*steps, last(config_groups=groups(scheme), ignore=["lm_head"])]


def main() -> None:
    options = record.arguments(__doc__, [f"{method}-{scheme}" for method in METHODS for scheme in SCHEMES])
    method, _, scheme = options.name.rpartition("-")
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not torch.accelerator.is_available():  # its AWQ (0.14) pins memory for an accelerator also where there is none, which torch refuses
        torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]

    def quantize(folder: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in record.calibration(options)]
        steps = recipe(method, scheme)
        told = {type(step).__name__: step.model_dump(exclude_none=True, exclude_defaults=True, mode="python") for step in steps}
        if method == "rtn":
            oneshot(model=model, recipe=steps)
        else:
            oneshot(model=model, recipe=steps, dataset=Dataset.from_list(rows), max_seq_length=len(rows[0]["input_ids"]),
                    num_calibration_samples=len(rows), shuffle_calibration_samples=False)
        model.save_pretrained(folder, save_compressed=True)
        AutoTokenizer.from_pretrained(options.model).save_pretrained(folder)
        return {"recipe": {name: str(fields) for name, fields in told.items()}, "dtype": options.dtype,
                "version": f"{version('llmcompressor')} (compressed-tensors {version('compressed-tensors')})"}

    record.run(options, "llmcompressor", quantize)


if __name__ == "__main__":
    main()
