"""Makes hqq.safetensors: small layers quantized, serialized and dequantized by HQQ itself. Run where hqq 0.2.8.post1 is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from safetensors.torch import save_file

CASES = {"8": (8, 32, 1, torch.float32, False), "6": (6, 32, 1, torch.float32, False), "5": (5, 32, 1, torch.float32, False),
         "4": (4, 32, 1, torch.float32, False), "3": (3, 32, 1, torch.float32, False), "2": (2, 16, 1, torch.float32, False),
         "1": (1, 32, 1, torch.float32, False), "row": (4, 64, 1, torch.float32, False), "half": (4, 32, 1, torch.float16, False),
         "bf16": (3, 32, 1, torch.bfloat16, False), "view": (4, 32, 1, torch.float16, True), "axis0": (4, 32, 0, torch.float32, False),
         "ternary": (1.58, 32, 1, torch.float32, False)}


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    for seed, (case, (bits, size, axis, dtype, view)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        linear = torch.nn.Linear(64, 40, bias=case == "8")
        config = BaseQuantizeConfig(nbits=bits, group_size=size, axis=axis, view_as_float=view)
        layer = HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
        state = {name: value.clone().contiguous() for name, value in layer.state_dict().items() if isinstance(value, torch.Tensor)}
        layer.meta = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in layer.meta.items()} | {"compute_dtype": torch.float32}
        tensors |= {f"{case}.{name}": value for name, value in state.items()} | {f"{case}.weight": layer.dequantize().float().contiguous()}
    save_file(tensors, Path(__file__).parent / "hqq.safetensors", metadata={"made by": "hqq 0.2.8.post1"})


if __name__ == "__main__":
    main()
