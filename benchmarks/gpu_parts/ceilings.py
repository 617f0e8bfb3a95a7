"""What this GPU does at best, on random data: bytes of memory, and products of large matrices by torch's own kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .timing import Candidate, in_turn

BYTES = 4 << 30      # of a copied tensor
SIDE = 8192          # of a square matrix
ROUNDS = 9


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"ceilings": {name: numbers per second}}: bytes of a copy (read plus written) and of a read, operations of products; what failed says so."""
    tiny = bool(case.get("tiny"))
    if tiny or not torch.cuda.is_available():
        return {"ceilings": {}, "notes": {"all": "no GPU: nothing was measured"}}
    found: dict[str, float] = {}
    notes: dict[str, str] = {}
    for name, (work, make) in {"copy": (2 * BYTES, _copy), "read": (BYTES, _read), "bf16": (2 * SIDE**3, _bf16), "fp8": (2 * SIDE**3, _fp8),
                               "fp8 exact sums": (2 * SIDE**3, _fp8_exact), "int8": (2 * SIDE**3, _int8)}.items():
        try:
            times = in_turn({name: Candidate([make()])}, ROUNDS)[name]
            found[name] = work / sorted(times)[len(times) // 2]
        except (RuntimeError, AttributeError) as error:
            notes[name] = f"{type(error).__name__}: {str(error)[:200]}"
        torch.cuda.empty_cache()
    return {"ceilings": found, "notes": notes}


def _numbers() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(SIDE, SIDE, device="cuda"), torch.randn(SIDE, SIDE, device="cuda")


def _copy() -> Callable[[], Any]:
    source = torch.randn(BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _read() -> Callable[[], Any]:
    source = torch.randn(BYTES // 4, device="cuda").view(-1, 1 << 16)
    out = torch.empty(source.shape[0], device="cuda")
    return lambda: torch.sum(source, dim=1, out=out)


def _bf16() -> Callable[[], Any]:
    x, y = (part.to(torch.bfloat16) for part in _numbers())
    return lambda: torch.mm(x, y.t())


def _fp8(fast: bool = True) -> Callable[[], Any]:
    x, y = (part.to(torch.float8_e4m3fn) for part in _numbers())
    one = torch.ones((), device="cuda")
    return lambda: torch._scaled_mm(x, y.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=fast)


def _fp8_exact() -> Callable[[], Any]:
    return _fp8(False)


def _int8() -> Callable[[], Any]:
    x, y = ((part * 30).to(torch.int8) for part in _numbers())
    return lambda: torch._int_mm(x, y.t())
