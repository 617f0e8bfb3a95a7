"""Speed of the linear kernels on one thread: weight bandwidth and arithmetic, by store, shape and number of rows.

    python benchmarks/kernels.py [--isa avx2] [--rows 1,4,16,64,512] [--specs int8,int4] [--seconds 0.15] [--cached] [--json FILE]

Shapes are those of SmolLM2-135M. A shape whose weights fit the cache is repeated over copies that together do not, so that batch 1 reads memory,
as a decode step does (not with --cached). Processor time of the best of several rounds counts: others may use the machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from octavo import _native, layouts, qtensor
from octavo.kernels.native import NativeWeight
from octavo.schemes import TensorSpec

SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536), (49152, 576)]
INT8 = TensorSpec("int8", "token", dynamic=True)
WHOLE_ROW = 1 << 24
SPECS = {  # name: weights, int8 activations that share a scale (0: float activations)
    "fp32": (TensorSpec("fp32"), 0),
    "bf16": (TensorSpec("bf16"), 0),
    "int8": (TensorSpec("int8", "channel"), WHOLE_ROW),
    "int8g64": (TensorSpec("int8", "group", 64, scale_format="fp16"), WHOLE_ROW),
    "int4g64": (TensorSpec("int4", "group", 64, scale_format="fp16"), WHOLE_ROW),
    "int4g32z": (TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16"), WHOLE_ROW),
    "nf4g64": (TensorSpec("nf4", "group", 64, scale_format="fp16"), WHOLE_ROW),
    "int4g64A8g64": (TensorSpec("int4", "group", 64, scale_format="fp16"), 64),
    "int8g64A8g64": (TensorSpec("int8", "group", 64, scale_format="fp16"), 64),
    "int8A16": (TensorSpec("int8", "channel"), 0),
    "int4g64A16": (TensorSpec("int4", "group", 64, scale_format="fp16"), 0),
    "nf4g64A16": (TensorSpec("nf4", "group", 64, scale_format="fp16"), 0),
}
BEYOND_CACHE = 64 << 20


def measure(name: str, n: int, k: int, rows: int, isa: str, seconds: float, cached: bool) -> dict[str, object]:
    """Best seconds of one call, with GB/s of weights and billions of multiply-adds per second."""
    spec, group = SPECS[name]
    rng = np.random.default_rng(0)
    packed = layouts.pack(qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32), spec))
    copies = 1 if rows > 4 or cached else min(64, max(1, BEYOND_CACHE // packed.meta.nbytes))
    tall = layouts.Packed(layouts.aligned(packed.meta.nbytes * copies), packed.meta) if copies > 1 else packed
    weights = []
    for i in range(copies):
        at = slice(i * packed.meta.nbytes, (i + 1) * packed.meta.nbytes)
        if copies > 1:
            tall.blob[at] = packed.blob
        weights.append(NativeWeight(layouts.Packed(tall.blob[at], packed.meta), INT8).native)
    x, y = rng.standard_normal((rows, k)).astype(np.float32), np.empty((rows, n), np.float32)
    repeat = 1 if copies > 1 else max(1, int(2e7 / (n * k * rows)))  # quantizing x counts once a call

    def once() -> float:
        start = time.thread_time()  # time on the processor: waiting for it is not the kernel's
        for weight in weights:
            _native.linear_once(weight, x, y, isa, group, repeat)
        return (time.thread_time() - start) / (len(weights) * repeat)

    once()
    best, end = once(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, once())
    return {"spec": name, "n": n, "k": k, "rows": rows, "isa": isa, "seconds": best,
            "gb_per_s": packed.meta.nbytes / best / 1e9, "gmac_per_s": n * k * rows / best / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default=_native.available_isas()[0])
    parser.add_argument("--rows", default="1,4,16,64,512")
    parser.add_argument("--specs", default=",".join(SPECS))
    parser.add_argument("--shapes", default=",".join(f"{n}x{k}" for n, k in SHAPES))
    parser.add_argument("--seconds", type=float, default=0.15, help="time for each number")
    parser.add_argument("--cached", action="store_true", help="weights may stay in the cache")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [int(r) for r in options.rows.split(",")]
    results = []
    print(f"{options.isa}, one thread; rows 1: GB/s of weights, else billions of multiply-adds per second")
    print("spec         shape       " + "".join(f"{r:>9}" for r in rows))
    for name in options.specs.split(","):
        for shape in options.shapes.split(","):
            n, k = (int(v) for v in shape.split("x"))
            line = [measure(name, n, k, r, options.isa, options.seconds, options.cached) for r in rows if n * k * r < 2e9]
            results += line
            print(f"{name:12} {shape:12}" + "".join(f"{r['gb_per_s' if r['rows'] == 1 else 'gmac_per_s']:9.1f}" for r in line), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
