"""What part `check` tries: every format with every kind of activation that multiplies it, on odd and even shapes, with all numbers of rows."""

from __future__ import annotations

from typing import Any

ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 33, 64, 128, 512, 4096)
BETWEEN = (24,)  # where there is time: a bucket of rows that none of these is in
ODD, EVEN = (333, 1061), (1536, 4096)  # the even one splits K over programs, and takes the copy engine's kernel where one fits

FP16 = {"scale_format": "fp16"}
FORMATS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {  # name -> TensorSpec's fields
    "bf16": (("bf16",), {}),
    "fp32": (("fp32",), {}),
    "int8 channel": (("int8", "channel"), {}),
    "int8 tensor": (("int8", "tensor"), {}),
    "int8 g32": (("int8", "group", 32), FP16),
    "int8 g128 zeros": (("int8", "group", 128), {"symmetric": False, "scale_format": "bf16"}),
    "int8 block": (("int8", "block", 32, 64), {}),
    "int6 g16": (("int6", "group", 16), {}),
    "int5 g32 zeros": (("int5", "group", 32), {"symmetric": False} | FP16),
    "int4 channel": (("int4", "channel"), {}),
    "int4 g128": (("int4", "group", 128), FP16),
    "int4 g64 zeros": (("int4", "group", 64), {"symmetric": False} | FP16),
    "int4 g32": (("int4", "group", 32), FP16),
    "int4 g32 zeros": (("int4", "group", 32), {"symmetric": False} | FP16),
    "int4 g96": (("int4", "group", 96), {}),
    "int4 g4": (("int4", "group", 4), FP16),
    "int3 g64": (("int3", "group", 64), FP16),
    "int2 g64": (("int2", "group", 64), FP16),
    "int2 g16 zeros": (("int2", "group", 16), {"symmetric": False}),
    "nf4 g64": (("nf4", "group", 64), FP16),
    "fp4 g64": (("fp4", "group", 64), FP16),
    "iq4nl": (("iq4nl", "group", 32), FP16),
    "mxfp4": (("mxfp4", "group", 32), {"scale_format": "e8m0"}),
    "nvfp4": (("nvfp4", "group", 16), {"scale_format": "fp8e4m3"}),
    "fp8e4m3 channel": (("fp8e4m3", "channel"), {}),
    "fp8e4m3 block": (("fp8e4m3", "block", 128, 128), {}),
    "fp8e5m2 g20": (("fp8e5m2", "group", 20), {}),
    "mxfp8": (("mxfp8", "group", 32), {"scale_format": "e8m0"}),
}
ACTIVATIONS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "bf16": (("bf16",), {}),
    "fp32": (("fp32",), {}),
    "int8 token": (("int8", "token"), {"dynamic": True}),
    "int8 g64": (("int8", "group", 64), {"dynamic": True}),
    "int8 static": (("int8", "tensor"), {}),
    "fp8 token": (("fp8e4m3", "token"), {"dynamic": True}),
    "fp8 g128": (("fp8e4m3", "group", 128), {"dynamic": True}),
}
WITH = {  # activation -> weights that meet it, beside floats, which meet all
    "int8 token": ("int8 channel", "int8 tensor", "int8 g32", "int8 g128 zeros", "int8 block", "int5 g32 zeros", "int4 channel", "int4 g128",
                   "int4 g64 zeros", "int4 g32", "int4 g32 zeros", "int3 g64", "int2 g64"),
    "int8 g64": ("int8 channel", "int4 g128", "int4 g32 zeros"),
    "int8 static": ("int8 channel",),
    "fp8 token": ("fp8e4m3 channel", "int4 channel", "int4 g128", "int4 g64 zeros", "int4 g32 zeros", "int3 g64", "mxfp4"),
    "fp8 g128": ("fp8e4m3 block", "fp8e4m3 channel", "int4 g128"),
}
MAIN = {("int4 g128", "bf16"), ("int8 channel", "int8 token"), ("fp8e4m3 block", "fp8 g128"), ("fp8e4m3 channel", "fp8 token"), ("mxfp4", "bf16"),
        ("bf16", "bf16"), ("int4 g128", "fp8 token"), ("nvfp4", "bf16"), ("int8 channel", "bf16"), ("int4 g64 zeros", "bf16"), ("int4 g128", "int8 token"),
        ("int2 g64", "bf16"), ("nf4 g64", "bf16")}
TINY = {("int4 g128", "bf16"), ("int8 channel", "int8 token"), ("fp8e4m3 block", "fp8 g128"), ("mxfp4", "bf16")}

OPS = ("rounding", "norm and rounding", "rms_norm", "rope", "gates", "embedding", "attention bf16", "attention fp32", "attention int8", "attention fp8",
       "attention wide heads", "attention window", "experts mxfp4", "experts int4 g64 zeros", "forward 32bit", "forward 16bit", "graphs 16bit", "graphs W4A16",
       "graphs 8bit")
TINY_OPS = ("rounding", "rms_norm", "rope", "gates", "attention bf16", "forward 32bit")


def cases(tiny: bool) -> list[dict[str, Any]]:
    """The main formats first."""
    pairs = [(name, "fp32" if name == "fp32" else "bf16") for name in FORMATS] + [(name, kind) for kind, names in WITH.items() for name in names]
    pairs.sort(key=lambda pair: pair not in MAIN)
    wanted = [pair for pair in pairs if not tiny or pair in TINY]
    shapes = {True: [ODD, EVEN], False: [ODD]}
    found = [{"id": f"{name} x {activation}, {n} x {k}", "module": "check", "weight": name, "activation": activation, "n": n, "k": k,
              "rows": sorted((*ROWS, *BETWEEN)) if (name, activation) in MAIN else list(ROWS), "extras": (name, activation) in MAIN}
             for name, activation in wanted for n, k in shapes[(name, activation) in MAIN]]
    if tiny:
        found = [case | {"id": f"{case['weight']} x {case['activation']}, 37 x 139", "n": 37, "k": 139, "rows": [1, 3, 17]} for case in found
                 if case["n"] == ODD[0]]
    found += [{"id": name, "module": "check_ops", "what": name} for name in (TINY_OPS if tiny else OPS)]
    return [case | {"tiny": tiny} for case in found]
