"""gptqmodel: GPTQ (v1, v2; act-order on and off; 2, 3, 4 and 8 bits) and AWQ folders, dequantized by gptqmodel's own torch modules.

    python tests/real_checkpoints/with_gptqmodel.py SOURCE OUT [KIND ...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import golden

# kind -> (configuration class, its fields). "rtn" rounds to nearest: the packing of other bit widths, without the minutes that GPTQ takes.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gptq-4bit-rtn": ("RTNConfig", {"bits": 4}), "gptq-2bit-rtn": ("RTNConfig", {"bits": 2}), "gptq-3bit-rtn": ("RTNConfig", {"bits": 3}),
    "gptq-8bit-rtn": ("RTNConfig", {"bits": 8}), "gptq-v2-4bit-asym-rtn": ("RTNConfig", {"bits": 4, "sym": False, "format": "gptq_v2"}),
    # RTNConfig with format "gemm" is left out: gptqmodel 7.7 writes quant_method "gptq" into such a folder, which Octavo refuses by its layout
    "gptq-4bit": ("GPTQConfig", {"bits": 4, "desc_act": False}), "gptq-4bit-actorder": ("GPTQConfig", {"bits": 4, "desc_act": True}),
    "awq-gemm": ("AWQConfig", {"bits": 4, "sym": False, "format": "gemm"}),
}


def quantize(source: Path, out: Path, kind: str) -> None:
    import gptqmodel.quantization.config as configs
    from gptqmodel import GPTQModel

    name, fields = KINDS[kind]
    config = getattr(configs, name)(group_size=64, device="cpu", **fields)
    model = GPTQModel.load(str(source), config)
    if name == "RTNConfig":
        model.quantize(calibration=None)
    else:
        model.quantize(golden.texts(8), batch_size=1)
    model.save(str(out))


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    stored, config = golden.stored_tensors(folder), golden.quantization_config(folder)
    if "gemm" in (config.get("checkpoint_format"), config.get("format"), config.get("version")):
        for module, state in golden.modules(stored, "qweight").items():
            yield f"{module}.weight", dequantize_gemm(state["qweight"], state["qzeros"], state["scales"].float(), config["bits"], config["group_size"]).T
        return
    loaded = GPTQModel.load(str(folder), backend=BACKEND.GPTQ_TORCH, device="cpu")
    for name, module in loaded.model.named_modules():
        if isinstance(module, BaseQuantLinear):
            module.scales = stored[f"{name}.scales"].to(torch.float32)  # the module's own copy was rounded to the model's bfloat16
            yield f"{name}.weight", module.dequantize_weight().to(torch.float32).T


def main(source: Path, out: Path, only: list[str]) -> None:
    os.chdir(out)  # it leaves logs where it runs
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores is one, which its own model loader refuses
    maker = f"gptqmodel {version('gptqmodel')}"
    for kind in only or KINDS:
        folder = out / f"gptqmodel-{kind}"
        if (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, kind)
        golden.write_golden(folder, maker, dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3:])
