"""Compiles GPU kernels for given architectures without a GPU, in the configurations that their launchers choose. Run as a program: see `main`.

A case is a function that calls launchers with tensors of torch's meta device (shapes and types, no numbers) on a pretended GPU. Kernels are replaced by
recorders meanwhile, so what is compiled is what would be launched: the same constants, warps and stages. A module of cases ends with CASES = {name: (modules
whose kernels are called, function of a Gpu)}; test_compile.py lists the modules.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.triton import tiles
from octavo.kernels.triton.tiles import Gpu

GPUS = {80: Gpu(108, 163 * 1024, (8, 0)), 89: Gpu(142, 99 * 1024, (8, 9)), 90: Gpu(132, 227 * 1024, (9, 0)), 100: Gpu(148, 227 * 1024, (10, 0))}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32",
         torch.int64: "i64", torch.float64: "fp64", torch.float8_e4m3fn: "fp8e4nv", torch.bool: "i1"}


class Recorder:
    """Stands in for a kernel and notes what it is launched with."""

    def __init__(self, kernel: Any, calls: list[tuple[Any, dict[str, Any]]]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.calls.append((self.kernel, {**dict(zip(self.kernel.arg_names, args)), **kwargs}))

        return launch


@contextmanager
def recorded(modules: list[Any], gpu: Gpu) -> Any:
    """The launches of the modules' kernels, on a pretended GPU."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    kernels = [(m, name, value) for m in modules for name, value in vars(m).items() if isinstance(value, triton.runtime.JITFunction)]
    places = [m for m in [*modules, tiles] if hasattr(m, "gpu")]
    real = tiles.gpu
    for module, name, kernel in kernels:
        setattr(module, name, Recorder(kernel, calls))
    for module in places:
        module.gpu = lambda device: gpu
    try:
        yield calls
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
        for module in places:
            module.gpu = real


def source(kernel: Any, launched: dict[str, Any]) -> tuple[ASTSource, dict[str, Any]]:
    """(what triton.compile takes, its options) for a launch: types, divisibility by 16 and ones as Triton's own launcher specializes them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        value = launched.get(name, parameter.default if parameter.has_default else None)
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(index,)] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, bool | int):
            free = not parameter.do_not_specialize
            if value == 1 and free:
                signature[name], constants[name] = "constexpr", 1
            else:
                signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0 and free:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    options: dict[str, Any] = {name: launched[name] for name in ("num_warps", "num_stages", "num_ctas", "maxnreg") if name in launched}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes), options


def resources(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack (spills) of the one kernel in a cubin, as cuobjdump of Triton's wheel reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {"registers": int(re.findall(r"REG:(\d+)", text)[-1]), "stack": int(re.findall(r"STACK:(\d+)", text)[-1])}


def compiled(kernel: Any, launched: dict[str, Any], arch: int) -> dict[str, Any]:
    what, options = source(kernel, launched)
    result = triton.compile(what, target=GPUTarget("cuda", arch, 32), options=options)
    text = result.asm["ptx"]
    units = sorted(set(re.findall(r"(wgmma\.mma_async\S*|tcgen05\.mma\S*|mma\.sync\S*)", text)))
    return {"shared": result.metadata.shared, **resources(result.asm["cubin"]), "units": units, "global_bytes": len(re.findall(r"ld\.global\S*\.b8", text))}


def main() -> int:
    """Prints a JSON line for each kernel of each case and architecture: case, kernel, arch, registers, stack, shared, limit, units, triton."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--arch", type=int, nargs="+", default=list(GPUS))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    for name in given.cases:
        for case, (modules, function) in importlib.import_module(name).CASES.items():
            for arch in given.arch:
                if not re.search(given.only, case):
                    continue
                with recorded([importlib.import_module(m) for m in modules], GPUS[arch]) as calls:
                    function(GPUS[arch])
                for kernel, launched in calls:
                    line = {"case": case, "kernel": kernel.__name__, "arch": arch, "limit": GPUS[arch].shared, "triton": triton.__version__}
                    print(json.dumps({**line, **compiled(kernel, launched, arch)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
