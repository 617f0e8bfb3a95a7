"""What no foreign format can hold, in Octavo's own: weights as the kernels read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .. import layouts
from ..checkpoints import Checkpoint
from ..checkpoints.octavo import OctavoWriter
from ..conversion import Report, Row
from ..errors import UsageError
from ..loading import make_vector, plan_as_stored
from ..schemes import write_tensor

TARGET = "octavo"


def write_own(checkpoint: Checkpoint, found: Mapping[str, str], out: Path) -> Report:
    """`checkpoint` as an octavo checkpoint at `out`: matrices packed in the precision they have, vectors as float32. `found`: name here -> name there.

    Raises CheckpointError where the disk refuses, KernelError for a precision without a layout.
    """
    weights = [name for name, stored in found.items() if len(checkpoint.tensors[stored].shape) == 2]
    plan = plan_as_stored(checkpoint, found, weights)
    if plan is None:
        raise UsageError("nothing is quantized", where=str(out))
    scales: dict[str, np.ndarray] = getattr(checkpoint, "input_scales", dict)()
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    rows: dict[str, list[tuple[int, int, int]]] = {}
    with OctavoWriter(out, config, plan.to_json(), {"content": checkpoint.content_key(), "layout": layouts.LAYOUT}) as writer:
        for name, stored in found.items():
            info = checkpoint.tensors[stored]
            if name in weights:
                packed = layouts.pack(checkpoint.read(stored))
                writer.add_packed(name, packed, float(scales.get(stored, 0)))
                rows.setdefault("W" + write_tensor(packed.meta.spec, "weight"), []).append((packed.meta.n * packed.meta.k, info.nbytes, packed.nbytes))
            else:
                values = make_vector(checkpoint, stored)
                writer.add_array(name, values)
                rows.setdefault("F32", []).append((values.size, info.nbytes, values.nbytes))
        writer.finish(checkpoint.tokenizer_files())
    files = sorted(path.name for path in out.iterdir() if path.is_file())
    return Report(str(checkpoint.path), str(out), TARGET, [Row("", written, "", len(parts), *map(sum, zip(*parts, strict=True)))
                                                           for written, parts in rows.items()], files)
