"""Octavo's own `quantize`, run as the reference libraries are: the same tokens, one process, wall time and peak memory beside the checkpoint.

    python benchmarks/quality/with_octavo.py MODEL IDS.npy OUT NAME [--rows 128] [--set METHOD.OPTION=VALUE ...]

NAME is [TRANSFORM-]METHOD-SCHEME in the words of the other drivers: gptq-w4g128, awq-rtn-w4g128z, smoothquant-gptq-w8a8. OMP_NUM_THREADS is the number
of threads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import record


def main() -> None:
    options = record.arguments(__doc__, None)
    *transforms, method, scheme = options.name.split("-")
    grammar = scheme.replace("w", "W", 1).replace("a8", "A8")
    grammar += "" if "A" in grammar else "A16"

    def quantize(folder: Path) -> dict[str, Any]:
        import octavo
        from octavo.quantize import Wish
        from octavo.quantize import quantize as run

        settings = dict(pair.split("=", 1) for pair in options.set)
        wish = Wish(grammar, method, tuple(transforms), settings, options.ids.resolve(), options.rows, record.calibration(options).shape[1])
        report = run(options.model, folder, wish, threads=int(os.environ.get("OMP_NUM_THREADS", "0")) or None, overwrite=True,
                     on_progress=lambda done, total, seconds: print(f"layer {done} of {total}, {seconds:.0f} s", file=sys.stderr, flush=True))
        return {**report.settings, "version": octavo.__version__}

    record.run(options, "octavo", quantize)


if __name__ == "__main__":
    main()
