"""Faults planted into a checkpoint that `--to awq` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

LIMIT = 0.5  # of --max-kl: a sound one is well below it, a damaged one above
PLANTED = {"a bad scale": "scales", "a swapped zero point": "qzeros", "not a number": "scales"}


def plant(folder: Path, kind: str) -> None:
    """Damage one layer's weights the way a faulty quantizer would."""
    import safetensors.numpy

    path = next(folder.glob("*.safetensors"))
    tensors = safetensors.numpy.load_file(path)
    names = [name for name in tensors if name.endswith(PLANTED[kind]) and (".down_proj." in name or ".v_proj." in name)]
    assert names
    for name in names:
        values = tensors[name].copy()
        if kind == "a bad scale":
            values[:, ::3] *= np.float16(40)
        elif kind == "not a number":
            values[0, 0] = np.nan
        else:
            values = (values.view(np.uint32) ^ np.uint32(0xFFFFFFFF)).view(tensors[name].dtype)  # z -> 15 - z in every nibble
        tensors[name] = values
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
