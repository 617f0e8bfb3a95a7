"""hqq: 4, 8, 3 and 2 bits in its safetensors form, dequantized by its own modules.

transformers 5 reads and makes no HQQ ("not available yet"), so the files are written around what each HQQLinear of the library puts into a state
dict: the form that transformers 4 wrote.

    python tests/real_checkpoints/with_hqq.py SOURCE OUT [KIND ...]
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

KINDS = {"4bit": (4, 64), "8bit": (8, 64), "3bit": (3, 64), "2bit": (2, 32)}


def quantize(source: Path, out: Path, bits: int, group: int) -> None:
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    settings = BaseQuantizeConfig(nbits=bits, group_size=group, axis=1)
    for name, value in golden.stored_tensors(source).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value
            continue
        linear = torch.nn.Linear(value.shape[1], value.shape[0], bias=False, dtype=torch.bfloat16)
        linear.weight.data = value
        layer = HQQLinear(linear, settings, compute_dtype=torch.bfloat16, device="cpu")
        tensors |= {f"{name.removesuffix('weight')}{key}": part.clone() for key, part in layer.state_dict().items()}
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    plain = json.loads((source / "config.json").read_text())
    config = {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": settings}
    (out / "config.json").write_text(json.dumps({**plain, "quantization_config": config}, indent=1))


def dequantized(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from hqq.core.quantize import HQQLinear

    for module, state in golden.modules(golden.stored_tensors(folder), "W_q").items():
        layer = HQQLinear(None, None, compute_dtype=torch.float32, device="cpu", initialize=False)
        layer.load_state_dict({name: value.float() if name in ("scale", "zero") else value for name, value in state.items()})
        yield f"{module}.weight", layer.dequantize().to(torch.float32)


def main(source: Path, out: Path, only: list[str]) -> None:
    for kind, (bits, group) in KINDS.items():
        folder = out / f"hqq-{kind}"
        if (only and kind not in only) or (folder / "golden.npz").exists():
            continue
        if not (folder / "config.json").exists():
            quantize(source, folder, bits, group)
        golden.write_golden(folder, f"hqq {version('hqq')}", dequantized(folder), source)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
