"""Every row of the comparison with the reference libraries: makes the checkpoints that are missing, one after another, and measures them.

    python benchmarks/quality/all.py ORIGINAL OUT --envs FOLDER --texts CALIBRATION.jsonl --text EVALUATION.txt [--bin FOLDER] [--group 128] [--rows 128]

FOLDER of --envs holds a virtual environment for each library: llmcompressor, gptqmodel, autoround; --bin the tools of llama.cpp. A library whose
environment is missing is left out and said. OUT gets calibration.npy, a folder per checkpoint with a log beside it, results.json and results.md. Hours:
it goes on where it stopped. Wall times mean something only when nothing else runs, and OMP_NUM_THREADS says of how many threads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
TYPES = ("q4_0", "q4_k", "q3_k", "q2_k", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq4_xs")
WEIGHED = "octavo-rtn-w4g32"  # by the inputs' mean squares, as the types of llama.cpp that it is held against are by their importance matrix
MIXES = ("q4_0", "q4_k_m", "q3_k_m", "q2_k", "iq2_xs", "iq3_xxs", "iq4_xs")


def runs(group: int) -> Iterator[tuple[str, str]]:
    """(library, method-scheme), the quick and the telling ones first. `group` is 64 where 128 divides no hidden size (SmolLM2's 576)."""
    small = 64
    schemes = (f"w4g{group}", f"w3g{group}", f"w2g{small}z")
    ours = ["rtn-w4g32"] + [f"{method}-{scheme}" for scheme in schemes for method in ("rtn", "gptq", "autoround")]
    ours += [f"awq-rtn-w4g{group}z", "gptq-w8a8", "smoothquant-gptq-w8a8", "smoothquant-rtn-w8a8", f"gptq-w4g{group}a8"]
    yield from (("octavo", name) for name in ours)
    for scheme in (*schemes, "w8a8", f"w4g{group}a8"):
        yield "llmcompressor", f"gptq-{scheme}"
    yield from (("gptqmodel", f"gptq-{scheme}") for scheme in schemes)
    yield from (("llamacpp", f"folded-{kind}") for kind in TYPES)
    yield from (("llamacpp", f"imatrix-{kind}") for kind in MIXES)
    for name in ("smoothquant-gptq-w8a8", "smoothquant-w8a8", f"awq-w4g{group}z", f"awq-w4g{group}"):
        yield "llmcompressor", name
    yield from (("autoround", f"{method}-{scheme}") for method in ("rtn", "signround") for scheme in schemes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--bin", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[], help="parts of LIBRARY-METHOD-SCHEME; default: all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ids = options.out / "calibration.npy"
    if not ids.exists():
        subprocess.run([sys.executable, HERE / "calibration_ids.py", options.original, options.texts, ids], check=True)
    failed = []
    for library, name in runs(options.group):
        label = f"{library}-{name}"
        if options.only and not any(part in label for part in options.only):
            continue
        python = Path(sys.executable) if library in ("octavo", "llamacpp") else options.envs / library / "bin" / "python"
        if not python.exists() or (library == "llamacpp" and options.bin is None):
            print(f"{label}: left out, {library} is not here", flush=True)
            continue
        command = [python, HERE / f"with_{library}.py", options.original, ids, options.out, name, "--rows", str(options.rows)]
        command += ["--bin", options.bin] if library == "llamacpp" else []
        command += ["--set", "rtn.importance=mean_square"] if label == WEIGHED else []
        with (options.out / f"{label}.log").open("a") as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        failed += [label] if status else []
        print(f"{label}: {'failed, see its log' if status else 'there'}", flush=True)
    subprocess.run([sys.executable, HERE / "compare.py", options.original, options.out, "--text", options.text, "--out", options.out / "results.json"],
                   check=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
