"""What a bare machine lacks: Octavo is used from its source folder, perhaps without array-api-compat, perhaps without the CPU's kernels.

`prepare` makes it importable: SciPy and scikit-learn carry array-api-compat; `octavo._native` may be missing for a computation on the GPU,
whose sampler, loader and machine description merely name it. `build` compiles it where there is a compiler, for the comparison with the CPU.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"gpu-{sys.implementation.cache_tag}"
VENDORED = ("sklearn.externals.array_api_compat", "scipy._lib.array_api_compat")
PEERS = ("torch", "triton", "gemlite", "bitsandbytes", "torchao")


def prepare() -> str:
    """Makes Octavo importable from its source folder; "here" or "stand-in": what its CPU kernels are."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("array_api_compat")
    except ImportError:
        sys.modules["array_api_compat"] = _vendored()
    import octavo

    try:
        importlib.import_module("octavo._native")
    except ImportError:
        sys.modules["octavo._native"] = octavo._native = _Absent("octavo._native")  # type: ignore[attr-defined]
        return "stand-in"
    return "here"


def _vendored() -> Any:
    for name in VENDORED:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise SystemExit("benchmarks/gpu.py needs array-api-compat, or a SciPy or scikit-learn that carries it: pip install array-api-compat")


class _Absent(types.ModuleType):
    """The CPU kernels where they are not built. The engine makes a Drawer it does not use for greedy tokens; all else says what is missing."""

    __file__ = __file__

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in ("available_isas", "cpu_features"):
            return lambda: ["portable"] if name == "available_isas" else []
        if name in ("Drawer", "Team"):
            return lambda *_: None
        return _refuse(name)


def shows_gpu() -> bool:
    """Whether there may be a GPU, asking no library: a device file, or the driver's tool."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists() or shutil.which("nvidia-smi") is not None


def has_native() -> bool:
    """Whether the CPU's kernels are built."""
    return not isinstance(sys.modules.get("octavo._native"), _Absent)


def _refuse(name: str) -> Any:
    def call(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"octavo._native is not built on this machine, so {name} cannot run")

    return call


def build() -> subprocess.Popen[bytes] | None:
    """Starts compiling the CPU's kernels into octavo/, unless they are there or a tool is missing; its output goes to build/gpu-.../log."""
    if importlib.util.find_spec("octavo._native") is not None or not shutil.which("cmake") or not shutil.which("c++"):
        return None
    if importlib.util.find_spec("nanobind") is None:
        return None
    BUILD.mkdir(parents=True, exist_ok=True)
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), *ninja, f"-DPython_EXECUTABLE={sys.executable}"]
    make = ["cmake", "--build", str(BUILD), "-j", str(max(2, (os.cpu_count() or 2) // 2))]
    script = ("import glob, shutil, subprocess, sys\n"
              f"for command in ({configure!r}, {make!r}):\n"
              "    subprocess.run(command, check=True)\n"
              f"for found in glob.glob({str(BUILD / '_native*.so')!r}):\n"
              f"    shutil.copy(found, {str(ROOT / 'octavo')!r})\n")
    with (BUILD / "log").open("wb") as log:
        return subprocess.Popen(["nice", "-n", "10", sys.executable, "-c", script], stdout=log, stderr=log)


def circumstances() -> dict[str, Any]:
    """When, with which code, on what; of a worker, which has torch. A + after the commit: with changes that were not committed."""
    import torch

    found: dict[str, Any] = {"date": datetime.date.today().isoformat(), "commit": commit(), "python": sys.version.split()[0]}
    found["versions"] = {name: _version(name) for name in PEERS}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}", "memory": gpu.total_memory, "processors": gpu.multi_processor_count,
                  "l2": getattr(gpu, "L2_cache_size", 0), "cuda": torch.version.cuda, "driver": _driver()}
    else:
        found["gpu"] = "none (Triton's interpreter)"
    return found


def commit() -> str:
    """The commit of this source, where git can tell."""
    try:
        short = _out("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
        return short + ("+" if _out("git", "-C", str(ROOT), "status", "--porcelain", "octavo") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _driver() -> str:
    try:
        return _out("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _out(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
