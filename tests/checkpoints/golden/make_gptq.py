"""Makes gptq.safetensors: small layers packed, and dequantized, by GPTQModel itself. Run where gptqmodel 7.7.0 is installed (it needs torch and is
too heavy for the test environment): `python tests/checkpoints/golden/make_gptq.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from gptqmodel import QuantizeConfig
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

ROWS = 32


def layer(bits: int, kind: str, version: str, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of one layer, and "weight": what the library dequantizes it to, [out, in]."""
    generator = torch.Generator().manual_seed(seed)
    width, size = (64, -1) if kind == "channel" else (96, 32)
    top, groups = (1 << bits) - 1, 1 if size == -1 else width // size
    index = torch.arange(width) // (width if size == -1 else size)
    if kind == "ordered":
        index = index[torch.randperm(width, generator=generator)]
    codes = torch.randint(0, top + 1, (ROWS, width), generator=generator).float()
    codes[0], codes[1] = 0, top
    zeros = torch.full((ROWS, groups), float((top + 1) // 2))
    if kind in ("asymmetric", "ordered"):
        zeros = torch.randint(0, top + 1, (ROWS, groups), generator=generator).float()
        zeros[2], zeros[3] = 0, top
    scales = (torch.rand((ROWS, groups), generator=generator) * 0.1 + 0.001).half().float()
    scales[4], scales[5] = 6e-5, 200.0
    scales = scales.half().float()
    linear = torch.nn.Linear(width, ROWS, bias=False)
    linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
    packed = TorchLinear(bits=bits, group_size=size, sym=kind != "asymmetric", desc_act=kind == "ordered", in_features=width, out_features=ROWS,
                         bias=False, pack_dtype=torch.int32, register_buffers=True)
    packed.pack_block(linear, scales, zeros, index.to(torch.int32))
    weight = packed.dequantize_weight().T.contiguous().clone()
    if version == "v1":
        convert_gptq_v2_to_v1_format_module(packed, QuantizeConfig(bits=bits))
    found = {name: getattr(packed, name).detach().clone().contiguous() for name in ("qweight", "qzeros", "scales", "g_idx")}
    return {**found, "weight": weight.half()}


def main() -> None:
    tensors = {}
    for seed, (bits, kind) in enumerate((b, k) for b in (2, 3, 4, 8) for k in ("symmetric", "asymmetric", "ordered", "channel")):
        for version in ("v1", "v2"):
            tensors |= {f"{bits}.{kind}.{version}.{name}": tensor for name, tensor in layer(bits, kind, version, seed).items()}
    save_file(tensors, Path(__file__).parent / "gptq.safetensors", metadata={"made by": "gptqmodel 7.7.0"})


if __name__ == "__main__":
    main()
