"""llm-compressor: compressed-tensors folders, dequantized by compressed-tensors itself.

    python tests/real_checkpoints/with_llmcompressor.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden

FP8_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def weights(bits: int, **more: Any) -> dict[str, Any]:
    return {"group_0": {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64,
                                                             **more}}}


def recipes() -> dict[str, tuple[Any, bool]]:
    """kind -> (modifier, whether it wants calibration). The hidden size of 576 is no multiple of 128, hence groups of 64."""
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    def preset(scheme: str, **more: Any) -> Any:
        return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"], **more)

    def groups(config: dict[str, Any]) -> Any:
        return QuantizationModifier(config_groups=config, ignore=["lm_head"])

    return {
        "w4a16": (groups(weights(4)), False), "w4a16-asym": (groups(weights(4, symmetric=False)), False), "w3a16": (groups(weights(3)), False),
        "w8a16": (groups(weights(8, strategy="channel", group_size=None)), False), "w8a8": (preset("W8A8"), True),
        "fp8": (preset("FP8"), True), "fp8-dynamic": (preset("FP8_DYNAMIC"), False), "fp8-block": (preset("FP8_BLOCK"), False),
        "nvfp4a16": (preset("NVFP4A16"), False), "nvfp4": (preset("NVFP4"), True), "mxfp4a16": (preset("MXFP4A16"), False),
        "mxfp8a16": (preset("MXFP8A16"), False), "fp8-dynamic-kv8": (preset("FP8_DYNAMIC", kv_cache_scheme=FP8_KV), True),
        "w4a16-gptq-actorder": (GPTQModifier(config_groups=weights(4, actorder="weight"), ignore=["lm_head"]), True),
    }


def quantize(source: Path, out: Path, modifier: Any, calibrated: bool) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    more: dict[str, Any] = {}
    if calibrated:
        rows = [tokenizer(text, max_length=128, truncation=True, add_special_tokens=False) for text in golden.texts(8)]
        more = {"dataset": Dataset.from_list([dict(row) for row in rows]), "max_seq_length": 128, "num_calibration_samples": len(rows)}
    oneshot(model=model, recipe=modifier, **more)
    model.save_pretrained(out, save_compressed=True)
    tokenizer.save_pretrained(out)


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    config = QuantizationConfig.model_validate(golden.quantization_config(folder))
    (scheme,) = config.config_groups.values()
    form = scheme.format or config.format
    compressor = BaseCompressor.get_value_from_registry(form)
    for module, state in golden.modules(golden.stored_tensors(folder), "weight_scale").items():
        if state["weight_scale"].dtype == torch.bfloat16:
            state["weight_scale"] = state["weight_scale"].float()
        if form == "nvfp4-pack-quantized":  # its decompress() rounds to bfloat16; the same two steps in float32
            packed = state["weight_packed"]
            codes = unpack_fp4_from_uint8(packed, len(packed), packed.shape[1] * 2, dtype=torch.float32)
            value = dequantize(x_q=codes, scale=state["weight_scale"].float(), args=scheme.weights, global_scale=state["weight_global_scale"],
                               dtype=torch.float32)
        else:
            value = compressor.decompress(state, scheme)["weight"]
        if value.dtype != torch.float32:
            print(f"{module}: dequantized to {value.dtype}")
        yield f"{module}.weight", value


def main(source: Path, out: Path, only: list[str]) -> None:
    maker = f"llm-compressor {version('llmcompressor')} (compressed-tensors {version('compressed-tensors')})"
    for kind, (modifier, calibrated) in recipes().items():
        folder = out / f"llmcompressor-{kind}"
        if (only and kind not in only) or (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, modifier, calibrated)
        golden.write_golden(folder, maker, dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
