"""Makes auto_round.safetensors: small layers packed, and dequantized, by AutoRound's own layers. Run where auto-round 0.16.1 is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from auto_round.export.export_to_autoround.export import dynamic_import_quant_linear_for_packing
from auto_round.export.export_to_awq.utils import WQLinear_GEMM, dequantize_gemm
from safetensors.torch import save_file

ROWS, WIDTH, SIZE = 32, 64, 32
FORMATS = {"auto_gptq": "auto_round:auto_gptq", "gptqmodel": "auto_round:gptqmodel", "plain": "auto_round", "auto_awq": "auto_round:auto_awq"}


def layer(kind: str, bits: int, symmetric: bool, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    top = (1 << bits) - 1
    codes = torch.randint(0, top + 1, (ROWS, WIDTH), generator=generator).float()
    zeros = torch.randint(0, top + 1, (ROWS, WIDTH // SIZE), generator=generator).float()
    if symmetric:
        zeros[:] = (top + 1) // 2
    if not symmetric:
        # auto_gptq stores 5-bit zero points of 0 as -1 & 31, and AutoRound's own layer reads that as 32: not a number to compare with.
        zeros[2], zeros[3] = 1 if (kind, bits) == ("auto_gptq", 5) else 0, top
        if (kind, bits) == ("auto_gptq", 5):
            zeros.clamp_(min=1)
    scales = (torch.rand((ROWS, WIDTH // SIZE), generator=generator) * 0.1 + 0.001).half().float()
    index = torch.arange(WIDTH) // SIZE
    linear = torch.nn.Linear(WIDTH, ROWS, bias=False)
    linear.weight.data = (codes - zeros[:, index]) * scales[:, index]
    if kind == "auto_awq":
        packed = WQLinear_GEMM.from_linear(linear, bits, SIZE, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, bits, SIZE).T
    else:
        packed = dynamic_import_quant_linear_for_packing(FORMATS[kind], bits, SIZE, symmetric)(bits, SIZE, WIDTH, ROWS, False, weight_dtype=torch.float16)
        packed.device = "cpu"
        packed.pack(linear, scales, zeros, None, device="cpu")
        unit = torch.eye(WIDTH)  # its forward pass is the only way to the weight: inputs times identity, in float32
        packed.scales = packed.scales.float()
        weight = packed.forward(unit).T
    found = {name: getattr(packed, name).clone() for name in ("qweight", "qzeros", "g_idx") if getattr(packed, name, None) is not None}
    return {**found, "scales": packed.scales.half(), "weight": weight.half().contiguous()}


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    cases = [(kind, bits, symmetric) for kind in FORMATS for bits in ((4, 5) if kind == "auto_awq" else (2, 3, 4, 5, 8)) for symmetric in (True, False)]
    for seed, (kind, bits, symmetric) in enumerate(cases):
        name = f"{kind}.{bits}.{'symmetric' if symmetric else 'asymmetric'}"
        tensors |= {f"{name}.{part}": t for part, t in layer(kind, bits, symmetric, seed).items()}
    save_file(tensors, Path(__file__).parent / "auto_round.safetensors", metadata={"made by": "auto-round 0.16.1"})


if __name__ == "__main__":
    main()
