"""GPTQ of a model of half a billion weights, 128 sequences of 512 tokens, beside gptqmodel: time and peak memory.

    python benchmarks/quality/half_billion.py TOKENIZER_FROM IDS.npy WORK --gptqmodel PYTHON [--threads 2]

The model has the shape of Qwen2.5-0.5B and random weights: what calibration costs depends on shapes. TOKENIZER_FROM: a folder whose tokenizer is
copied, IDS its calibration tokens (calibration_ids.py), WORK gets the model and both checkpoints; PYTHON is of an environment with gptqmodel. Both run with
the drivers beside this file, one after the other; nothing else should run (an hour on two cores). Writes benchmarks/results/calibration.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
NAME = "gptq-w4g128"


def make(folder: Path, tokenizer: Path) -> None:
    """The model, unless it is there."""
    if (folder / "config.json").exists():
        return
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                         max_position_embeddings=32768, tie_word_embeddings=True, rope_theta=1e6, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--gptqmodel", type=Path, required=True, help="the Python of its environment")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model = options.work / "model"
    make(model, options.tokenizer)
    rows = []
    for library, python in (("gptqmodel", options.gptqmodel), ("octavo", Path(sys.executable))):
        subprocess.run([python, HERE / f"with_{library}.py", model, options.ids, options.work, NAME, "--rows", "128"], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": str(options.threads)})
        rows.append(json.loads((options.work / f"{library}-{NAME}" / "result.json").read_text()))
    keep(rows)


def keep(rows: list[dict[str, object]]) -> None:
    import report

    names = ("library", "version", "method", "scheme", "rows", "length", "wall_s", "cpu_s", "peak_rss_mb", "threads")
    report.save("calibration", {**report.circumstances(), "model": "the shape of Qwen2.5-0.5B, random weights",
                                "rows": [{name: row[name] for name in names} for row in rows]})
    report.write_quality()


if __name__ == "__main__":
    main()
