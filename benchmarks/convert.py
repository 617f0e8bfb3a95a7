"""Conversion to GGUF against llama-quantize: the same input, the same threads, one after the other.

    python benchmarks/convert.py SOURCE.gguf LLAMA_QUANTIZE [--types Q4_0 Q8_0] [--threads N] [--rounds 5] [--folder DIR] [--json]

SOURCE is a GGUF of F16 or BF16 weights. Each round runs both as processes of their own, in turn, from a warm file cache, each onto a file that is not
there; wall time from start to end, which counts Python's start. A round's ratio is llama-quantize's time over Octavo's; printed is the median of them,
with the rates in bytes of input. `octavo convert` also makes its file durable (fsync) and digests the source for its manifest; llama-quantize does neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str], out: Path) -> float:
    """Wall time of one run. Raises CalledProcessError with what it said."""
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - began
    if not out.is_file():
        raise SystemExit(f"{command[0]} wrote no {out}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("quantizer", type=Path)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q8_0"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    size, results = options.source.stat().st_size, {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, theirs = Path(folder) / "octavo.gguf", Path(folder) / "llama.gguf"
        for kind in options.types:
            mine = [sys.executable, "-m", "octavo.cli", "convert", str(options.source), str(ours), "--to", f"gguf:{kind}", "--overwrite",
                    "--threads", str(options.threads)]
            other = [str(options.quantizer), str(options.source), str(theirs), kind, str(options.threads)]
            options.source.read_bytes()  # into the file cache
            pairs = [(seconds(mine, ours), seconds(other, theirs)) for _ in range(options.rounds)]
            results[kind] = {"octavo_s": statistics.median(a for a, _ in pairs), "llama_quantize_s": statistics.median(b for _, b in pairs),
                             "ratio": statistics.median(b / a for a, b in pairs), "ratios": [round(b / a, 3) for a, b in pairs]}
    if options.json:
        print(json.dumps({"bytes": size, "threads": options.threads, "types": results}, indent=2))
        return
    for kind, r in results.items():
        print(f"{kind:8} octavo {r['octavo_s']:6.2f} s {size / r['octavo_s'] / 1e9:5.2f} GB/s   llama-quantize {r['llama_quantize_s']:6.2f} s "
              f"{size / r['llama_quantize_s'] / 1e9:5.2f} GB/s   ratio {r['ratio']:.2f} {r['ratios']}")


if __name__ == "__main__":
    main()
