"""auto-round: learned rounding in its own format.

    python benchmarks/quality/with_autoround.py MODEL IDS.npy OUT NAME [--rows 128] [--iters 200]

NAME: signround-w4g128, signround-w2g64z (z: with zero points) and so on; rtn- for its rounding without tuning ("optimized RTN").
"""

from __future__ import annotations

import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import record

NAMES = tuple(f"{method}-w{bits}g{group}{zero}" for method in ("signround", "rtn") for bits in (2, 3, 4) for group in (32, 64, 128) for zero in ("", "z"))


def main() -> None:
    options = record.arguments(__doc__, NAMES)
    found = re.search(r"w(\d)g(\d+)(z?)", options.name)
    assert found is not None
    bits, group, zero = int(found[1]), int(found[2]), bool(found[3])
    steps = 0 if options.name.startswith("rtn") else options.iters
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def quantize(folder: Path) -> dict[str, Any]:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
        ids = torch.from_numpy(record.calibration(options))
        tuned = AutoRound(model, AutoTokenizer.from_pretrained(options.model), bits=bits, group_size=group, sym=not zero, iters=steps,
                          seqlen=ids.shape[1], nsamples=len(ids), batch_size=options.batch, dataset=[row[None] for row in ids], device_map="cpu",
                          low_gpu_mem_usage=False)
        with tempfile.TemporaryDirectory(dir=folder.parent) as parent:  # it saves into a folder of its own naming
            tuned.quantize_and_save(parent, format="auto_round")
            (config,) = Path(parent).rglob("config.json")
            for path in config.parent.iterdir():
                path.rename(folder / path.name)
        return {"iters": steps, "batch_size": options.batch, "sym": not zero, "dtype": options.dtype, "version": version("auto-round")}

    record.run(options, "autoround", quantize)


if __name__ == "__main__":
    main()
