"""What compiled.py compiles of the products: the shapes of Llama-3-8B, DeepSeek-V3's blocks and gpt-oss' experts, with one row, 64 and 4096."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo import formats, schemes
from octavo.kernels.triton import experts, linear_codes, linear_fp4, linear_fp8, linear_int8, rows
from octavo.kernels.triton.tiles import Gpu
from octavo.kernels.triton.weights import GpuWeight
from octavo.schemes import TensorSpec

META = torch.device("meta")
FLOATS = TensorSpec("bf16")
INT8, FP8 = TensorSpec("int8", "token", dynamic=True), TensorSpec("fp8e4m3", "token", dynamic=True)
FP8_GROUPS = TensorSpec("fp8e4m3", "group", 128, dynamic=True)
BITS = {"ints4": 4, "table": 4, "pairs": 4, "ints2": 2, "bf16": 16, "fp32": 32}
CODES = {"ints8": torch.int8, "bf16": torch.bfloat16, "fp32": torch.float32}
PREFIX = "octavo.kernels.triton."


def weight(kind: str, spec: TensorSpec, activation: TensorSpec, scales: torch.dtype | None, n: int = 4096, k: int = 4096, offsets: bool = False,
           alike: int = 1) -> GpuWeight:
    """A weight of these shapes and types, without numbers."""
    group = spec.size if spec.granularity == "group" else spec.columns
    groups = -(-k // group) if group else 1
    codes = torch.empty((n, k * min(BITS.get(kind, 8), 8) // 8), dtype=CODES.get(kind, torch.uint8), device=META)
    table = torch.tensor(formats.get(spec.format).table) if kind == "table" else None
    return GpuWeight(kind, spec, activation, n, k, codes, None if scales is None else torch.empty((groups, n), dtype=scales, device=META),
                     torch.empty((groups, n), device=META) if offsets else None, table, group, alike, 1.0, 0.0, None, None, 0, None,
                     torch.empty(n, dtype=torch.int32, device=META))


def x_of(count: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty((count, k), dtype=dtype, device=META)


def codes_case(made: GpuWeight, count: int) -> Callable[[Gpu], None]:
    def call(gpu: Gpu) -> None:
        x = x_of(count, made.k, torch.float32 if count <= 16 or made.kind == "fp32" else torch.bfloat16)
        span = linear_codes.sums_span(made, count)
        sums = torch.empty((count, -(-made.k // span)), device=META) if span else None
        linear_codes.multiply(linear_codes.Inputs(x, sums), made, torch.empty(made.n, device=META), torch.empty((count, made.n), device=META))

    return call


def rounded_case(module: object, made: GpuWeight, count: int) -> Callable[[Gpu], None]:
    def call(gpu: Gpu) -> None:
        if made.activation.format == "fp8e4m3" and gpu.capability < (8, 9):
            return
        group = made.activation.size
        dtype = torch.int8 if made.activation.format == "int8" else torch.uint8
        sums = torch.empty((count, 1 if made.scales is None else len(made.scales)), device=META) if made.offsets is not None else None
        given = rows.Rounded(x_of(count, made.k, dtype), torch.empty((made.k // group if group else 1, count), device=META), group, sums)
        module.multiply(given, made)  # type: ignore[attr-defined]

    return call


def fp4_case(made: GpuWeight, count: int) -> Callable[[Gpu], None]:
    def call(gpu: Gpu) -> None:
        if gpu.capability >= (10, 0) and made.scales is not None:
            codes, scales = x_of(count, made.codes.shape[1], torch.uint8), torch.empty((len(made.scales), count), dtype=torch.uint8, device=META)
            linear_fp4.multiply(linear_fp4.Inputs(codes, scales, torch.empty(count, device=META)), made)
            linear_fp4.rounded(x_of(count, made.k, torch.float32), made.activation.format)

    return call


def experts_case(pairs: int) -> Callable[[Gpu], None]:
    def call(gpu: Gpu) -> None:
        like = weight("table", schemes.parse("Wmxfp4").weight, FLOATS, torch.uint8, 5760, 2880)
        assert like.scales is not None
        count = 32
        layer = experts.Experts(like, torch.empty((count, *like.codes.shape), dtype=torch.uint8, device=META),
                                torch.empty((count, *like.scales.shape), dtype=torch.uint8, device=META), None)
        tile = experts.tile_for(like, pairs, count, gpu)
        place = torch.empty(count, dtype=torch.int32, device=META)
        routing = experts.Routing(torch.empty(pairs, dtype=torch.int32, device=META), place, place, place, 4, tile.rows)
        y = experts.multiply(x_of(pairs // 4, 2880, torch.float32), layer, routing, tile, torch.empty((count, 5760), device=META))
        experts.mix(y, torch.empty((pairs // 4, 4), device=META))

    return call


def rows_case(gpu: Gpu) -> None:
    x = x_of(64, 4096, torch.float32)
    for format in ("int8", "fp8e4m3"):
        for group in (0, 128):
            given = rows.rounded(x, format, group)
            rows.normed(x, torch.empty(4096, device=META), 1e-5, format, group)
            rows.rounded_sums(given, 128)
    rows.span_sums(x, 128)


G128, G64, G32 = (TensorSpec("int4", "group", size, scale_format="fp16") for size in (128, 64, 32))
CODES_CASES = {
    "int4 g128": weight("ints4", G128, FLOATS, torch.float16),
    "int4 g128 zeros": weight("ints4", TensorSpec("int4", "group", 128, symmetric=False, scale_format="fp16"), FLOATS, torch.float16, offsets=True),
    "int4 g64": weight("ints4", G64, FLOATS, torch.float16, 14336),
    "int4 g32": weight("ints4", G32, FLOATS, torch.float16),
    "int8": weight("ints8", TensorSpec("int8", "channel"), FLOATS, torch.float32),
    "int2 g64": weight("ints2", TensorSpec("int2", "group", 64, scale_format="fp16"), FLOATS, torch.float16),
    "nf4 g64": weight("table", TensorSpec("nf4", "group", 64, scale_format="fp16"), FLOATS, torch.float16),
    "mxfp4": weight("table", schemes.parse("Wmxfp4").weight, FLOATS, torch.uint8),
    "nvfp4": weight("table", schemes.parse("Wnvfp4").weight, FLOATS, torch.bfloat16),
    "fp8 block": weight("fp8e4m3", TensorSpec("fp8e4m3", "block", 128, 128), FLOATS, torch.float32),
    "bf16": weight("bf16", TensorSpec("bf16"), FLOATS, None),
    "fp32": weight("fp32", TensorSpec("fp32"), TensorSpec("fp32"), None),
}
ROUNDED_CASES = {
    "W8A8": (linear_int8, weight("ints8", TensorSpec("int8", "channel"), INT8, torch.float32)),
    "W4A8 g128": (linear_int8, weight("ints4", G128, INT8, torch.float16)),
    "W4A8 g32": (linear_int8, weight("ints4", G32, INT8, torch.float16)),
    "Wfp8Afp8": (linear_fp8, weight("fp8e4m3", TensorSpec("fp8e4m3", "channel"), FP8, torch.float32)),
    "FP8 blocks": (linear_fp8, weight("fp8e4m3", TensorSpec("fp8e4m3", "block", 128, 128), FP8_GROUPS, torch.float32, 7168, 2048, alike=128)),
    "W4Afp8 g128": (linear_fp8, weight("ints4", G128, FP8, torch.float16)),
    "Wmxfp4Afp8": (linear_fp8, weight("table", schemes.parse("Wmxfp4").weight, FP8, torch.uint8)),
}
FP4_CASES = {name: weight("pairs", schemes.parse(f"W{name}A{name}").weight, schemes.parse(f"W{name}A{name}").activation, scales)
             for name, scales in (("nvfp4", torch.float8_e4m3fn), ("mxfp4", torch.uint8))}
CASES = {
    **{f"{name}, {count} rows": ([PREFIX + "linear_codes"], codes_case(made, count)) for name, made in CODES_CASES.items() for count in (1, 64, 4096)},
    **{f"{name}, {count} rows": ([module.__name__, PREFIX + "linear_fp8_wide"], rounded_case(module, made, count)) for name, (module, made) in
       ROUNDED_CASES.items() for count in (1, 64, 4096)},
    **{f"W{name}A{name}, {count} rows": ([PREFIX + "linear_fp4"], fp4_case(made, count)) for name, made in FP4_CASES.items() for count in (1, 64, 4096)},
    **{f"experts, {pairs} pairs": ([PREFIX + "experts"], experts_case(pairs)) for pairs in (4, 8192)},
    "rows": ([PREFIX + "rows"], rows_case),
}
