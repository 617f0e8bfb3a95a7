"""What compiled.py compiles besides products: norms, rotary positions, caches and attention in the shapes of Llama-3-8B, Gemma 3 and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from octavo.kernels.triton import attention, embed, gate, norm, program, rope, turn
from octavo.kernels.triton.cached import through
from octavo.kernels.triton.pool import GpuPool
from octavo.kernels.triton.tiles import Gpu
from octavo.schemes import TensorSpec

META = torch.device("meta")
PREFIX = "octavo.kernels.triton."
SPECS = {"bf16": TensorSpec("bf16"), "fp32": TensorSpec("fp32"), "int8": TensorSpec("int8", "token", dynamic=True),
         "fp8": TensorSpec("fp8e4m3", "token", dynamic=True), "int4": TensorSpec("int4", "token", symmetric=False, scale_format="bf16", dynamic=True)}
SHAPES = {"32 over 8 heads of 128": (32, 8, 128), "9 over 3 of 64": (9, 3, 64), "4 over 1 of 256": (4, 1, 256)}


def of(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def ints(*shape: int) -> torch.Tensor:
    return of(*shape, dtype=torch.int32)


def attention_case(cache: str, shape: tuple[int, int, int], window: int = 0, softcap: float = 0.0) -> Callable[[Gpu], None]:
    heads, kv_heads, dim = shape
    dtype = torch.float32 if cache == "fp32" else torch.bfloat16

    def call(gpu: Gpu) -> None:
        layer, rows = GpuPool(64, [kv_heads], [dim], SPECS[cache], device=META).layers[0], 64
        q, k, table = of(rows, heads * dim, dtype=dtype), of(rows, kv_heads * dim, dtype=dtype), of(4096, dim, dtype=torch.float32)
        for splits in (1, 8):
            who = attention.Attending(ints(32), ints(32), splits, {attention.tile_rows(heads // kv_heads, dim): ints(20, 2)}, ints(40), ints(40), ints(40, 64))
            now: Any = program.Now(rows, rows, ints(rows), ints(rows), ints(rows), ints(rows), who, None, dtype, [])  # type: ignore[arg-type]
            through(q, k, k, layer, now, table if splits == 1 else None, heads, dim**-0.5, window, softcap)

    return call


def rest(gpu: Gpu) -> None:
    """Everything else, once in each form."""
    for dtype in (torch.float32, torch.bfloat16):
        x, heads = of(64, 4096, dtype=torch.float32), of(64, 32 * 128)
        norm.rms_norm(x, of(4096, dtype=torch.float32), of(64, 4096, dtype=dtype), 1e-6)
        norm.rms_norm(heads, of(128, dtype=torch.float32), of(64, 4096, dtype=dtype), 1e-6, 1.0, 32)
        rope.rope(heads, of(64, 4096, dtype=dtype), of(4096, 128, dtype=torch.float32), ints(64), 32, 128, 128)
        for kind in ("silu", "gelu_tanh", "gelu"):
            gate.gate(kind, heads, heads, of(64, 4096, dtype=dtype))
        gate.add(x, heads, of(64, 4096, dtype=dtype))
        gate.softcap(x, of(64, 4096, dtype=dtype), 30.0)
        embed.take(x, ints(9), of(9, 4096, dtype=dtype))
        for dim in (64, 128, 256):
            turn.turn(of(64, 8 * dim), of(64, 8 * dim, dtype=dtype), of(2, dim, dim, dtype=torch.float32), 8, 2, of(2, dim, dtype=torch.float32))
    who: Any = attention.Attending(ints(64), ints(64), 1, {}, ints(65), ints(64), ints(64, 16))
    program.advance(program.Now(64, 64, ints(64), ints(64), ints(64), ints(64), who, None, torch.bfloat16, []), ints(2, 64))  # type: ignore[arg-type]


def table_case(kind: str, bits: int, scales: torch.dtype, offsets: bool) -> Callable[[Gpu], None]:
    def call(gpu: Gpu) -> None:
        from gpu.linear_cases import weight

        spec = {"ints8": TensorSpec("int8", "channel"), "ints4": TensorSpec("int4", "group", 128), "ints2": TensorSpec("int2", "group", 64),
                "table": TensorSpec("mxfp4", "group", 32, scale_format="e8m0"), "fp8e4m3": TensorSpec("fp8e4m3", "channel")}[kind]
        embed.embed(weight(kind, spec, SPECS["bf16"], scales, 32000, 4096, offsets), ints(64), of(64, 4096, dtype=torch.float32))

    return call


CACHED = [PREFIX + name for name in ("attention", "store", "store4", "turn", "rope")]
OTHERS = [PREFIX + name for name in ("norm", "rope", "gate", "embed", "turn", "program")]
CASES: dict[str, tuple[list[str], Callable[[Gpu], None]]] = {
    **{f"attention {cache}, {name}": (CACHED, attention_case(cache, shape))
       for cache in SPECS for name, shape in SHAPES.items() if cache != "fp32" or shape[2] < 256},
    "attention bf16, window and cap": (CACHED, attention_case("bf16", (8, 4, 128), 1024, 50.0)),
    "row by row": (OTHERS, rest),
    **{f"embedding {kind}": ([PREFIX + "embed"], table_case(kind, bits, scales, offsets))
       for kind, bits, scales, offsets in (("ints8", 8, torch.float32, False), ("ints4", 4, torch.float16, True), ("ints2", 2, torch.float16, True),
                                           ("table", 4, torch.uint8, False), ("fp8e4m3", 8, torch.float32, False))},
}
