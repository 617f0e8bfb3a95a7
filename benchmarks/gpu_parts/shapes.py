"""Shapes of real models, and which products are timed in which order. Numbers are [outputs, inputs] of weights.

Llama-3-8B      hidden 4096, feed-forward 14336, 32 heads and 8 of keys of 128 (meta-llama/Meta-Llama-3-8B, config.json)
Qwen3-32B       hidden 5120, feed-forward 25600, 64 heads and 8 of keys of 128 (Qwen/Qwen3-32B, config.json)
DeepSeek-V3     hidden 7168, experts of 2048, 256 of them, 8 to a token (deepseek-ai/DeepSeek-V3, config.json)
"""

from __future__ import annotations

from typing import Any

SHAPES = {
    "Llama-3-8B qkv": (6144, 4096), "Llama-3-8B o": (4096, 4096), "Llama-3-8B gate": (14336, 4096), "Llama-3-8B down": (4096, 14336),
    "Qwen3-32B qkv": (10240, 5120), "Qwen3-32B o": (5120, 8192), "Qwen3-32B gate": (25600, 5120), "Qwen3-32B down": (5120, 25600),
    "DeepSeek-V3 expert gate": (2048, 7168), "DeepSeek-V3 expert down": (7168, 2048),
}
EXPERTS = {"DeepSeek-V3 experts gate+up": (4096, 7168, 256, 8), "DeepSeek-V3 experts down": (7168, 2048, 256, 8)}  # n, k, experts, chosen by a token
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
FEW = ("Llama-3-8B gate", "Llama-3-8B down")

# Name -> (weight spec's fields, activation spec's fields), as schemes.TensorSpec takes them
PRECISIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...], dict[str, Any]]] = {
    "W4A16": (("int4", "group", 128), {"scale_format": "fp16"}, ("bf16",), {}),
    "FP8 blocks": (("fp8e4m3", "block", 128, 128), {}, ("fp8e4m3", "group", 128), {"dynamic": True}),
    "W8A8": (("int8", "channel"), {}, ("int8", "token"), {"dynamic": True}),
    "FP8 rows": (("fp8e4m3", "channel"), {}, ("fp8e4m3", "token"), {"dynamic": True}),
    "W8A16": (("int8", "channel"), {}, ("bf16",), {}),
    "NF4": (("nf4", "group", 64), {"scale_format": "fp16"}, ("bf16",), {}),
    "MXFP4": (("mxfp4", "group", 32), {"scale_format": "e8m0"}, ("bf16",), {}),
    "W4Afp8": (("int4", "group", 128), {"scale_format": "fp16"}, ("fp8e4m3", "token"), {"dynamic": True}),
    "W4A8": (("int4", "group", 128), {"scale_format": "fp16"}, ("int8", "token"), {"dynamic": True}),
    "bf16": (("bf16",), {}, ("bf16",), {}),
}


def ways(tiny: bool, warm: bool = False) -> list[dict[str, Any]]:
    """Products that a bar is about, and decoding of 16 sequences, in all ways."""
    shapes = {"tiny": (64, 128)} if tiny else SHAPES
    wanted = (("W4A16", 1), ("FP8 blocks", 4096), ("W8A8", 4096), ("W4Afp8", 1), ("FP8 rows", 1), ("bf16", 1), ("W4A16", 16), ("W4Afp8", 16))
    return [{"id": f"{precision}, {name}, {rows} rows, all ways", "module": "peer_ways", "kind": "ways", "precision": precision, "shape": name, "n": n,
             "k": k, "rows": [3 if tiny else rows], "warm": warm, "tiny": tiny} for precision, rows in (wanted[:1] if tiny else wanted)
            for name, (n, k) in shapes.items()]


def cases(tiny: bool, warm: bool = False) -> list[dict[str, Any]]:
    """What is timed, what the bars ask for first. warm: only what has to be compiled for it, once."""
    shapes = {"tiny": (96, 256)} if tiny else SHAPES
    experts = {"tiny": (64, 128, 8, 2)} if tiny else EXPERTS
    rows = (1, 5) if tiny else ROWS
    few = tuple(shapes) if tiny else FEW

    def products(precision: str, names: Any, which: Any, tier: int) -> list[dict[str, Any]]:
        return [{"id": f"{precision}, {name}, rows {min(which)} to {max(which)}", "module": "peers", "kind": "linear", "precision": precision, "shape": name,
                 "n": shapes[name][0], "k": shapes[name][1], "rows": list(which), "tier": tier} for name in names if name in shapes]

    last, first = (rows[-1],), (rows[0],)
    others = tuple(r for r in rows if r not in first)
    found = [] if warm else [{"id": "ceilings", "module": "ceilings", "kind": "ceilings", "tiny": tiny, "tier": 0}]
    found += products("W4A16", shapes, first, 1) + products("FP8 blocks", shapes, last, 1) + products("W8A8", shapes, last, 1)
    found += [{"id": f"MXFP4 experts, {name}", "module": "peer_experts", "kind": "experts", "shape": name, "n": n, "k": k, "count": count, "top": top,
               "rows": list(rows), "tier": 1} for name, (n, k, count, top) in experts.items()]
    found += products("W4A16", shapes, others, 2)
    for precision in ("FP8 blocks", "W8A8"):
        found += products(precision, shapes, rows[:-1], 3)
    for precision in ("FP8 rows", "W8A16", "MXFP4", "W4Afp8", "bf16", "NF4", "W4A8"):
        found += products(precision, few, rows if tiny else (1, 64, 4096), 4)
    return [case | {"warm": warm, "tiny": tiny} for case in found]
