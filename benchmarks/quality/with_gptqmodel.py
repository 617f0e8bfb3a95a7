"""gptqmodel: GPTQ in its own format.

    python benchmarks/quality/with_gptqmodel.py MODEL IDS.npy OUT NAME [--rows 128]

NAME: gptq-w4g128, gptq-w2g64z (z: with zero points; saved as gptq_v2, which keeps them as they are) and so on.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import record

NAMES = tuple(f"gptq-w{bits}g{group}{zero}" for bits in (2, 3, 4, 8) for group in (32, 64, 128) for zero in ("", "z"))


def main() -> None:
    options = record.arguments(__doc__, NAMES)
    for name in ("model", "ids", "out"):
        setattr(options, name, getattr(options, name).resolve())
    found = re.search(r"w(\d)g(\d+)(z?)", options.name)
    assert found is not None
    bits, group, zero = int(found[1]), int(found[2]), bool(found[3])
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores is one, which its own model loader refuses
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import GPTQConfig

    def quantize(folder: Path) -> dict[str, Any]:
        more = {"format": "gptq_v2"} if zero else {}
        config = GPTQConfig(bits=bits, group_size=group, sym=not zero, device="cpu", **more)
        model = GPTQModel.load(str(options.model), config, dtype=getattr(torch, options.dtype))
        rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in record.calibration(options)]
        model.quantize(rows, batch_size=1)
        model.save(str(folder))
        return {"sym": not zero, "act_group_aware": config.act_group_aware, "damp_percent": config.damp_percent, "dtype": options.dtype}

    record.run(options, "gptqmodel", quantize)


if __name__ == "__main__":
    main()
