"""Tensor parallelism: on how many devices the heads, groups, blocks and packed words can be split."""

from __future__ import annotations

from collections.abc import Iterator

from ..findings import Disorder, Finding
from ..patient import Patient
from ..stated import stated
from . import Check
from .shapes import logical_shape

SPLIT = Disorder("tensor_parallel", "info", "the model cannot be split over this many devices by tensor parallelism",
                 "use fewer devices, pipeline parallelism, or a smaller group size")
ROW_PARALLEL = ("o_proj", "down_proj")
DEVICES = (2, 4, 8)


def check(patient: Patient) -> Iterator[Finding]:
    heads, kv_heads = patient.number("num_attention_heads"), patient.number("num_key_value_heads")
    shapes = {module: shape for module, parts in patient.weights.items() if (shape := logical_shape(patient, parts)) is not None and len(shape) == 2}
    for devices in DEVICES:
        reasons = []
        if heads is not None and heads % devices:
            reasons.append(f"{heads} heads")
        if kv_heads is not None and kv_heads % devices and devices % kv_heads:
            reasons.append(f"{kv_heads} key-value heads")
        for module, (rows, columns) in shapes.items():
            if not module.endswith(("_proj", "_proj.base_layer")):
                continue
            inner = module.endswith(ROW_PARALLEL)
            size = _unit(patient, module, inner)
            width = columns if inner else rows
            if size and (width % devices or width // devices % size):
                reasons.append(f"{module}: {width} {'inputs' if inner else 'outputs'} in units of {size}")
                break
        if reasons:
            yield SPLIT(f"tp={devices}", "; ".join(reasons))


def _unit(patient: Patient, module: str, inner: bool) -> int:
    """How many inputs (or outputs) must stay together."""
    said = stated(patient, module)
    blocks = patient.quantization.get("weight_block_size")
    if isinstance(blocks, list) and len(blocks) == 2 and all(type(b) is int and b > 0 for b in blocks):
        return int(blocks[1 if inner else 0])
    if said is None or "weight" in patient.weights[module]:
        return 1
    group = said.group if said.group is not None and said.group > 0 else 1
    return group if inner else 8 if said.awq else 1


CHECK = Check(check, (SPLIT,))
