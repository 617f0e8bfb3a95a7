"""Memory and time of loading: what was announced against what it took, and the second start against the first.

    python benchmarks/loading.py MODEL [--schemes 8bit 4bit] [--repeats 3]

Every start is a process of its own with VmHWM read at its end, after one token was computed. The first start quantizes and fills an empty
cache; the second maps what the first one kept. Of the seconds, the best of `--repeats` are shown: those of `load` itself, and those from
the start of the process to the first logits. Writes benchmarks/results/loading.json and docs/performance.md, and ends with status 1
when a bar is missed: measured within 10% of announced; below quantized size + largest tensor in 16 bits + 300 MB; five times faster.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import report

ALLOWANCE = 300e6
START = """
import json, os, sys, time
from octavo.loading import load
loaded = load(sys.argv[1], quantization=sys.argv[2], cache_dir=sys.argv[3], threads=int(sys.argv[4]))
import numpy as np
from octavo.cache import Step
one, ends = np.zeros(1, np.int32), np.array([0, 1], np.int32)
step = Step(tokens=one, positions=one, slots=one, starts=ends, lengths=one + 1, tables=np.zeros((1, 1), np.int32), select=one)
assert np.isfinite(loaded.forward(step, loaded.new_pool(1))).all()
with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
    ticks = float(stat.read().rsplit(")", 1)[1].split()[19])
    alive = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
with open("/proc/self/status") as status:
    fields = dict(line.split(":", 1) for line in status)
print(json.dumps({**loaded.report.to_json(), "process": alive, "peak": int(fields["VmHWM"].split()[0]) * 1024}))
"""


def start(model: str, scheme: str, cache: Path, threads: int) -> dict[str, Any]:
    run = subprocess.run([sys.executable, "-c", START, model, scheme, str(cache), str(threads)], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


def largest(model: str) -> int:
    """Bytes of the largest tensor at 16 bits."""
    from octavo.checkpoints import open_checkpoint

    sizes = [info.shape for info in open_checkpoint(model).tensors.values()]
    return max(2 * rows * columns for rows, columns in (shape for shape in sizes if len(shape) == 2))


def measure(model: str, scheme: str, repeats: int, threads: int) -> dict[str, Any]:
    firsts, seconds = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            firsts.append(start(model, scheme, Path(folder), threads))
            seconds.append(start(model, scheme, Path(folder), threads))
    assert not any(answer["cache_hit"] for answer in firsts) and all(answer["cache_hit"] for answer in seconds)
    top = max(firsts, key=lambda answer: answer["peak"])
    row = {"scheme": scheme, "plan": top["scheme"], "predicted": top["predicted_peak"], "peak": top["peak"],
           "quantized": top["weight_bytes"], "largest": largest(model),
           "first": min(a["seconds"] for a in firsts), "second": min(a["seconds"] for a in seconds),
           "first_process": min(a["process"] for a in firsts), "second_process": min(a["process"] for a in seconds),
           "second_predicted": seconds[0]["predicted_peak"], "second_peak": max(a["peak"] for a in seconds)}
    return {**row, "bound": row["quantized"] + row["largest"] + ALLOWANCE}


def missed(row: dict[str, Any]) -> list[str]:
    off = row["peak"] / row["predicted"] - 1
    checks = {
        f"peak {off:+.1%} off what was announced": abs(off) > 0.1,
        f"peak {row['peak'] / 1e6:.0f} MB above {row['bound'] / 1e6:.0f} MB": row["peak"] > row["bound"],
        f"second start only {row['first'] / row['second']:.1f} times faster": row["first"] < 5 * row["second"],
    }
    return [f"{row['scheme']}: {text}" for text, bad in checks.items() if bad]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--schemes", nargs="+", default=["8bit", "4bit"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--print-only", action="store_true", help="write neither JSON nor docs")
    args = parser.parse_args()
    rows = []
    for scheme in args.schemes:
        row = measure(args.model, scheme, args.repeats, args.threads)
        rows.append(row)
        print(f"{scheme}: announced {row['predicted'] / 1e6:.0f} MB, measured {row['peak'] / 1e6:.0f} MB ({row['peak'] / row['predicted'] - 1:+.1%}), "
              f"bound {row['bound'] / 1e6:.0f} MB; load {row['first']:.2f} s, then {row['second']:.3f} s ({row['first'] / row['second']:.1f} times faster); "
              f"whole process {row['first_process']:.2f} s, then {row['second_process']:.2f} s; second start {row['second_peak'] / 1e6:.0f} MB "
              f"(announced {row['second_predicted'] / 1e6:.0f})", flush=True)
    if not args.print_only:
        report.save("loading", {**report.circumstances(threads=args.threads), "model": Path(args.model).stem, "repeats": args.repeats, "rows": rows})
        report.write_performance()
    if bad := [text for row in rows for text in missed(row)]:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    main()
