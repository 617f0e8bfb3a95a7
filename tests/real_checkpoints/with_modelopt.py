"""nvidia-modelopt: unified Hugging Face exports (FP8, NVFP4, W4A16_AWQ, MXFP8, an FP8 KV cache), dequantized by modelopt's own tensor classes.

    python tests/real_checkpoints/with_modelopt.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden

KINDS = {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG", "w4a16-nvfp4": "W4A16_NVFP4_CFG", "mxfp8": "MXFP8_DEFAULT_CFG",
         "fp8-kv8": "FP8_DEFAULT_CFG+FP8_KV_CFG", "fp8-pc-pt": "FP8_PER_CHANNEL_PER_TOKEN_CFG", "w4a16-awq": "INT4_AWQ_CFG"}


def quantize(source: Path, out: Path, kind: str) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)

    def run(model: Any) -> None:
        with torch.no_grad():
            for text in golden.texts(4):
                model(tokenizer(text, return_tensors="pt", max_length=128, truncation=True).input_ids)

    main_name, _, kv_name = KINDS[kind].partition("+")
    config = getattr(mtq, main_name)
    if kv_name:
        from modelopt.torch.quantization.utils import update_quant_cfg_with_kv_cache_quant

        config = update_quant_cfg_with_kv_cache_quant(config, getattr(mtq, kv_name)["quant_cfg"])
    if kind == "w4a16-awq":  # 576 is no multiple of the preset's 128; three strengths of smoothing are tried, not eleven
        config = with_block(config, 64) | {"algorithm": {"method": "awq_lite", "alpha_step": 0.5}}
    model = mtq.quantize(model, config, run)
    with torch.inference_mode():
        export_hf_checkpoint(model, export_dir=out)
    tokenizer.save_pretrained(out)


def with_block(config: Any, size: int) -> Any:
    """The same configuration with every weight block along the inputs of `size`."""
    import copy

    changed = copy.deepcopy(config)
    for entry in changed["quant_cfg"]:
        cfg = entry.get("cfg") if isinstance(entry, dict) else None
        for part in cfg if isinstance(cfg, list) else [cfg]:
            if isinstance(part, dict) and part.get("block_sizes"):
                part["block_sizes"] = {**part["block_sizes"], -1: size}
    return changed


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor, NVFP4QTensor

    for module, state in golden.modules(golden.stored_tensors(folder), "weight_scale").items():
        weight, scale = state["weight"], state["weight_scale"]
        if weight.dtype == torch.uint8 and len(weight) * 2 == len(scale):
            yield f"{module}.weight", awq(weight, scale.float(), state.get("pre_quant_scale"))
            continue
        shape = torch.Size((len(weight), weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)))
        if "weight_scale_2" in state:
            value = NVFP4QTensor(shape, torch.float32, weight).dequantize(scale=scale, double_scale=state["weight_scale_2"], block_sizes={-1: 16})
        elif scale.dtype == torch.uint8:
            value = MXFP8QTensor(shape, torch.float32, weight).dequantize(scale=scale)
        else:
            value = FP8QTensor(shape, torch.float32, weight).dequantize(scale=scale.float() if scale.ndim == 0 else scale.float().reshape(-1, 1))
        yield f"{module}.weight", value


def awq(packed: Any, scale: Any, smoothing: Any) -> Any:
    """W4A16_AWQ: byte [i, k] holds rows 2i (low) and 2i + 1 of column k. modelopt has a packer for it and no unpacker: its packer must give the bytes back."""
    import torch
    from modelopt.torch.export.quant_utils import pack_int4_in_uint8

    signed = packed.view(torch.int8)
    codes = torch.stack((signed << 4 >> 4, signed >> 4), dim=1).reshape(-1, packed.shape[1]).float()
    block = codes.shape[1] // scale.shape[1]
    value = codes * scale.repeat_interleave(block, dim=1)
    if not torch.equal(pack_int4_in_uint8(value, scale, block), packed):
        raise SystemExit("modelopt's packer disagrees with the unpacked codes")
    return value if smoothing is None else value * smoothing.float()


def main(source: Path, out: Path, only: list[str]) -> None:
    for kind in KINDS:
        folder = out / f"modelopt-{kind}"
        if (only and kind not in only) or (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, kind)
        golden.write_golden(folder, f"nvidia-modelopt {version('nvidia-modelopt')}", dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
