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
from ..schemes import CacheSpec, Plan, TensorSpec, write_tensor

TARGET = "octavo"


def write_own(checkpoint: Checkpoint, found: Mapping[str, str], out: Path, cache: TensorSpec | CacheSpec | None = None) -> Report:
    """`checkpoint` as an octavo checkpoint at `out`: matrices packed in the precision they have, vectors as float32. `found`: name here -> name there;
    `cache`: what the key-value cache is quantized to.

    Raises CheckpointError where the disk refuses, KernelError for a precision without a layout.
    """
    weights = [name for name, stored in found.items() if len(checkpoint.tensors[stored].shape) == 2]
    plan = plan_as_stored(checkpoint, found, weights)
    if plan is None and cache is None:
        raise UsageError("nothing is quantized", where=str(out))
    if plan is None:
        single = all((spec := checkpoint.tensors[found[name]].spec) is not None and spec.format == "fp32" for name in weights)
        plan = Plan.parse("W32A32C32" if single else "W16A16C16")
    plan = plan if cache is None else plan.with_cache(cache)
    cache_scales: dict[str, np.ndarray] = getattr(checkpoint, "cache_scales", dict)()
    scales: dict[str, np.ndarray] = getattr(checkpoint, "input_scales", dict)()
    config = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    rows: dict[str, list[tuple[int, int, int]]] = {}
    with OctavoWriter(out, config, plan.to_json(), {"content": checkpoint.content_key(), "layout": layouts.LAYOUT},
                      cache_scales) as writer:
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
