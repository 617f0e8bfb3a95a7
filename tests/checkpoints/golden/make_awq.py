"""Makes awq.safetensors: small layers packed by AutoAWQ's own WQLinear_GEMM, and dequantized by its packing_utils. Run where autoawq 0.2.9 is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import save_file

ROWS = 64


def layer(kind: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width, size = {"g32": (96, 32), "g64": (64, 64), "mid": (64, 32), "g128": (256, 128)}[kind]
    groups = width // size
    codes = torch.randint(0, 16, (ROWS, width), generator=generator).float()
    codes[0], codes[1] = 0, 15
    zeros = torch.randint(0, 16, (ROWS, groups), generator=generator).float() if kind != "mid" else torch.full((ROWS, groups), 8.0)
    if kind != "mid":
        zeros[2], zeros[3] = 0, 15
    scales = (torch.rand((ROWS, groups), generator=generator) * 0.1 + 0.001).half().float()
    scales[4], scales[5] = 6e-5, 200.0
    scales = scales.half().float()
    index = torch.arange(width) // size
    linear = torch.nn.Linear(width, ROWS, bias=False)
    linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
    packed = WQLinear_GEMM.from_linear(linear, 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
    weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, size)
    assert torch.equal(weight.T, ((codes - zeros[:, index]) * scales[:, index]).half())
    return {"qweight": packed.qweight, "qzeros": packed.qzeros, "scales": packed.scales, "weight": weight.T.contiguous().half()}


def main() -> None:
    tensors = {f"{kind}.{name}": t.clone() for seed, kind in enumerate(("g32", "g64", "mid", "g128")) for name, t in layer(kind, seed).items()}
    save_file(tensors, Path(__file__).parent / "awq.safetensors", metadata={"made by": "autoawq 0.2.9"})


if __name__ == "__main__":
    main()
