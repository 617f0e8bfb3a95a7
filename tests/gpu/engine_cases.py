"""What compiled.py compiles of the engine's side: drawing tokens from Llama-3's vocabulary, what follows a library's product, a step that becomes the next."""

from __future__ import annotations

import torch

from octavo.kernels.triton import draw, linear_torch
from octavo.kernels.triton.tiles import Gpu

PREFIX = "octavo.kernels.triton."
META = torch.device("meta")


def of(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def drawing(gpu: Gpu) -> None:
    at = of(2, 16, dtype=torch.float64), of(3, 16), of(16, dtype=torch.int32), of(16, dtype=torch.int32)
    draw.launch(of(16, 128256), of(13, draw.HEAD, dtype=torch.int64), at, of(13, dtype=torch.int32), 16)


def finishing(gpu: Gpu) -> None:
    for product, scales in ((torch.int32, torch.float32), (torch.bfloat16, torch.float16), (torch.float32, None)):
        linear_torch.finished(of(512, 4096, dtype=product), None if scales is None else of(1, 512), None if scales is None else of(1, 4096, dtype=scales), 1.0,
                              of(4096), of(512, 4096), narrow=scales is None)


CASES = {"drawing": ([PREFIX + "draw"], drawing), "after a library": ([PREFIX + "linear_torch"], finishing)}
