"""auto-round: its own format in both packings, with tuned rounding, dequantized by auto-round's own torch modules.

    python tests/real_checkpoints/with_autoround.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden

# kind -> (format to save, bits, symmetric, tuning steps per block)
KINDS = {"gptq-rtn": ("auto_round:auto_gptq", 4, True, 0), "asym-rtn": ("auto_round", 4, False, 0), "awq-rtn": ("auto_round:auto_awq", 4, False, 0),
         "2bit-rtn": ("auto_round", 2, True, 0), "3bit-rtn": ("auto_round", 3, True, 0), "8bit-rtn": ("auto_round", 8, True, 0),
         "gptq": ("auto_round:auto_gptq", 4, True, 4), "auto-awq": ("auto_awq", 4, False, 0), "auto-gptq": ("auto_gptq", 4, True, 0)}


def quantize(source: Path, out: Path, kind: str) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    form, bits, symmetric, steps = KINDS[kind]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source)
    dataset = [tokenizer(text, return_tensors="pt", max_length=128, truncation=True).input_ids for text in golden.texts(8)]
    tuned = AutoRound(model, tokenizer, bits=bits, group_size=64, sym=symmetric, iters=steps, seqlen=128, nsamples=8, batch_size=4, dataset=dataset,
                      device_map="cpu", disable_opt_rtn=True, low_gpu_mem_usage=False)
    with tempfile.TemporaryDirectory(dir=out.parent) as parent:  # it saves into a folder of its own naming
        tuned.quantize_and_save(parent, format=form)
        (config,) = Path(parent).rglob("config.json")
        config.parent.rename(out)


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    """By auto_round_extension's torch modules for the GPTQ packings, by auto_round's AWQ unpacking for the other."""

    config = golden.quantization_config(folder)
    bits, group = config["bits"], config["group_size"]
    form = config.get("packing_format") or config["quant_method"]
    if form.endswith("awq"):
        from auto_round.export.export_to_awq.utils import dequantize_gemm

        for module, state in golden.modules(golden.stored_tensors(folder), "qweight").items():
            yield f"{module}.weight", dequantize_gemm(state["qweight"], state["qzeros"], state["scales"].float(), bits, group).T
        return
    if form.endswith("gptq") and "qptqmodel" not in form:
        from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
    else:
        from auto_round_extension.torch.qlinear_torch import QuantLinear
    for module, state in golden.modules(golden.stored_tensors(folder), "qweight").items():
        inputs, outputs = state["qweight"].shape[0] * 32 // bits, state["qweight"].shape[1]
        layer = QuantLinear(bits, group, inputs, outputs, bias=False)
        for name in ("qweight", "qzeros", "g_idx"):
            if name in state:
                setattr(layer, name, state[name])
        layer.scales = state["scales"].float()
        yield f"{module}.weight", through(layer, inputs)


def through(layer: Any, inputs: int) -> Any:
    """The weight [out, in] of a module as what it makes of the unit vectors: exact, since each product has one term that is not zero."""
    import torch

    with torch.no_grad():
        return layer(torch.eye(inputs)).T


def main(source: Path, out: Path, only: list[str]) -> None:
    for kind in only or KINDS:
        folder = out / f"autoround-{kind}"
        if (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, kind)
        print(folder.name, json.dumps({k: v for k, v in golden.quantization_config(folder).items() if isinstance(v, (str, int))}))
        golden.write_golden(folder, f"auto-round {version('auto-round')}", dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
