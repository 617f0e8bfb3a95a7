"""What a quantization run cost, written beside the checkpoint it made. Runs in any library's environment: standard library and NumPy only.

    result.json     library, version, method, scheme, settings, rows and length of the calibration tokens, wall_s (from a loaded process to written files,
                    reading the model and saving included, imports not), cpu_s (of all threads, the same stretch), busy (whether other work ran
                    meanwhile: then wall_s says little), peak_rss_mb (of the process and its children since it started), threads
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


def arguments(description: str | None, names: Sequence[str] | None) -> argparse.Namespace:
    """MODEL IDS.npy OUT NAME [--rows N]: what every driver takes. NAME is one of `names`, or any."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("out", type=Path, help="the folder that gets <library>-NAME")
    parser.add_argument("name", choices=names)
    parser.add_argument("--rows", type=int, default=128, help="calibration sequences: the first of the file")
    parser.add_argument("--iters", type=int, default=200, help="auto-round: steps per block")
    parser.add_argument("--batch", type=int, default=8, help="auto-round: sequences per step")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="torch's libraries: of the model while it is quantized")
    parser.add_argument("--set", action="append", default=[], help="octavo: METHOD.OPTION=VALUE")
    parser.add_argument("--busy", action="store_true", help="other work runs on the machine: the wall time will not be shown")
    parser.add_argument("--bin", type=Path, help="llama.cpp: the folder of its tools")
    return parser.parse_args()


def calibration(options: argparse.Namespace) -> np.ndarray:
    """int64 [rows, length]."""
    ids: np.ndarray = np.load(options.ids)[: options.rows].astype(np.int64)
    return ids


def run(options: argparse.Namespace, library: str, quantize: Callable[[Path], dict[str, Any]]) -> None:
    """`quantize(folder)` makes the checkpoint and returns its settings; this times it and writes result.json. A finished folder is left as it is.

    The scheme is the last part of the name, the method what is before it.
    """
    method, _, scheme = options.name.rpartition("-")
    folder = options.out / f"{library}-{options.name}"
    if (folder / "result.json").exists():
        print(f"{folder.name}: there already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    began, before = time.perf_counter(), _cpu_seconds()
    settings = quantize(folder)
    wall, cpu = time.perf_counter() - began, _cpu_seconds() - before
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    ids = np.load(options.ids, mmap_mode="r")
    result = {"library": library, "version": settings.pop("version", None) or version(library), "method": method, "scheme": scheme,
              "rows": options.rows, "length": int(ids.shape[1]), "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "busy": options.busy,
              "peak_rss_mb": round(peak),
              "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)), "settings": settings}
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{folder.name}: {wall:.0f} s, {peak:.0f} MB", file=sys.stderr)


def _cpu_seconds() -> float:
    """Of this process, and of the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
