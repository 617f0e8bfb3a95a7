"""Octavo on an NVIDIA GPU, in one command of under ten minutes: builds, checks, times, and prints what came of it.

    python benchmarks/gpu.py [--budget 540] [--only check peers model quality ways] [--out FILE] [--model FOLDER --text FILE]
    python benchmarks/gpu.py --tiny [--only check] [--match WORDS]     without a GPU: small cases in Triton's interpreter, nothing stored
    python benchmarks/gpu.py --page                                    docs/gpu-results.md from the stored results

check    every kernel against float64 on the device, all formats, all numbers of rows, odd shapes; NaN, infinity, bits in company
peers    products of Llama-3-8B, Qwen3-32B and DeepSeek-V3's experts against torch's kernels and, where installed, gemlite, bitsandbytes and
         torchao, in turn, weights from memory; ceilings of the GPU in the same run
model    a model of Llama-3-8B's shape with random weights through the engine: loading, decoding at batch 1, 16 and 128, what of a step is not kernels
ways     the same products in every way that `octavo tune` would try (not unless asked for: --only ways)
quality  a real small model on GPU and CPU: perplexity and KL on a text (--model, --text; default: the demo model or stories260k if they are there)

Needs Python 3.11, torch with CUDA and triton; runs from a plain checkout, nothing need be installed (array-api-compat may come from SciPy or scikit-learn; the
CPU's kernels are built in the background where CMake, nanobind and a compiler are, and only `quality` misses them). Kernels are compiled in many processes at
once, times are taken in one with nothing beside it. Results are written after every case, so a run that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_parts import machine, page, plan
from gpu_parts.crew import run_all

RESULTS = machine.ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = machine.ROOT / "docs" / "gpu-results.md"
CASE_SECONDS = {"check": 100.0, "warm": 90.0, "peers": 60.0, "ways": 60.0, "model": 150.0, "quality": 60.0}
WRITE_EVERY = 3.0
BUILD_SECONDS = 60.0  # more for the CPU's kernels, once the checks are through
DROPPED = ("module", "warm", "tiny")  # of a case, in its record


class Run:
    """One run: its results, in memory and in a file after every case."""

    def __init__(self, out: Path | None, options: plan.Options, in_workers: int | None, match: str) -> None:
        self.out, self.options, self.in_workers, self.match = out, options, in_workers, match
        self.result: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
        self.result.setdefault("parts", {})
        self.written = 0.0
        self.environment = {"TRITON_INTERPRET": "1"} if options.tiny else {}

    def part(self, name: str, until: float) -> None:
        """All cases of a part, until the monotonic time."""
        cases = [case for case in plan.cases(name, self.options) if self.match in case["id"]]
        kept: dict[str, Any] = {"records": [], "circumstances": {}}
        if name != "warm":
            self.result["parts"][name] = kept
        began, bad = time.monotonic(), 0

        def keep(case: dict[str, Any], record: dict[str, Any]) -> None:
            nonlocal bad
            if case["id"] == "about":
                kept["circumstances"] = record
                return
            if "error" in record or record.get("failed"):
                bad += 1
                print(f"  {case['id']}: {record.get('error') or '; '.join(record['failed'])[:200]}", flush=True)
            kept["records"].append({key: value for key, value in case.items() if key not in DROPPED} | record)
            self.write()

        if not cases:
            print(f"{name}: nothing to do", flush=True)
            return
        count = plan.workers(name) if self.in_workers is None else self.in_workers
        environment = self.environment | ({"OMP_NUM_THREADS": "2"} if count > 1 else {})
        print(f"{name}: {len(cases)} cases, {count} at a time", flush=True)
        left = run_all([{"id": "about", "module": "about"}, *cases], count, until, keep, CASE_SECONDS[name], environment)
        kept |= {"took": round(time.monotonic() - began, 1), "left_out": left}
        print(f"{name}: {kept['took']:.0f} s" + (f", {bad} with errors" if bad else "") + (f", {left} left out for lack of time" if left else ""), flush=True)
        self.write(now=True)

    def write(self, now: bool = False) -> None:
        """The results so far, in place of what was there; not with every record where these come fast."""
        if self.out is None or (not now and time.monotonic() - self.written < WRITE_EVERY):
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.out.with_suffix(".part")
        fresh.write_text(json.dumps(self.result, indent=1) + "\n")
        os.replace(fresh, self.out)
        self.written = time.monotonic()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts; what one leaves, the next ones have")
    parser.add_argument("--only", nargs="+", choices=plan.PARTS, default=list(plan.USUAL))
    parser.add_argument("--out", type=Path, help=f"where results go, default: {RESULTS.relative_to(machine.ROOT)}; other parts in it are kept")
    parser.add_argument("--model", default="", help="a folder or .gguf file for quality")
    parser.add_argument("--text", default="receipt", help="a text for quality; default: Octavo's own few hundred words")
    parser.add_argument("--layers", type=int, default=0, help="of the large model, for a quick look; default: all")
    parser.add_argument("--tiny", action="store_true", help="small cases in Triton's interpreter; times mean nothing, nothing is stored")
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--workers", type=int, help="processes for every part, 0: all in this one")
    parser.add_argument("--page", action="store_true", help="only write docs/gpu-results.md again")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        from gpu_parts.worker import serve

        return serve()
    if options.page:
        print("written" if page.write(RESULTS, PAGE) else "there are no results")
        return
    if not options.tiny and not machine.shows_gpu():
        parser.error("this system shows no NVIDIA GPU; --tiny runs the cases small, in Triton's interpreter")
    began = time.monotonic()
    out = None if options.tiny else options.out or RESULTS
    in_workers = 1 if options.tiny and options.workers is None else options.workers
    run = Run(out, plan.Options(options.tiny, options.model, options.text, options.layers, tuple(options.only)), in_workers, options.match)
    building = None if options.tiny or "quality" not in options.only else machine.build()
    for part, end in plan.deadlines(tuple(options.only), options.budget).items():
        if part != "check" and building is not None and building.poll() is None:  # nothing runs beside what is timed
            print("waiting for the CPU's kernels to be built", flush=True)
            _wait(building, time.monotonic() + BUILD_SECONDS)
            building.kill()
        run.part(part, began + end)
    print(page.measured(run.result))
    print(page.text(run.result))
    if options.tiny:
        print("Triton's interpreter on this CPU: the times mean nothing and nothing was stored.")
    elif out == RESULTS:
        page.write(RESULTS, PAGE)
    print(f"{time.monotonic() - began:.0f} s in all")


def _wait(process: Any, until: float) -> None:
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.5)


if __name__ == "__main__":
    main()
