"""Shapes of packed weights: what they say about bits and groups, against what quantization_config says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

from ..findings import Disorder, Finding
from ..patient import Patient
from ..stated import Stated, stated
from . import Check

BITS = Disorder("bits_contradiction", "error", "the shapes of a packed weight mean another number of bits than the config states",
                "correct quantization_config: engines that trust it read noise")
GROUP = Disorder("group_contradiction", "error", "the shape of the scales means another group size than the config states",
                 "correct group_size in quantization_config, or take the scales that belong to it")
LAYOUT = Disorder("layout_contradiction", "error", "packed along the other dimension than quant_method means (GPTQ packs inputs, AWQ outputs)",
                  "set quant_method to the tool that packed it")
RAGGED = Disorder("group_divisibility", "error", "the inputs are no multiple of the group size, which kernels and packers of this format demand",
                  "quantize again with a group size that divides the inputs")
OLD = Disorder("old_packing", "warning", "packed as compressed-tensors did until 2026-06: words hold whole numbers, with padding. The format's name is the "
               "same today, and newer readers unpack it to noise", "convert it (octavo convert --to compressed-tensors), or keep the version that wrote it")
ORDER = Disorder("act_order_contradiction", "error", "the order of the inputs (g_idx) contradicts the config or cannot be",
                 "desc_act must say whether g_idx is an order; quantize again if it names groups that are not there")
INTS = ("I32", "U32")


def logical_shape(patient: Patient, parts: Mapping[str, str]) -> tuple[int, ...] | None:
    """[out, in] of a weight however it is packed; None where that cannot be told."""
    survey = patient.survey
    shapes = {part: survey.tensors[name].shape for part, name in parts.items()}
    if "weight_shape" in parts and shapes["weight_shape"] == (2,) and survey.tensors[parts["weight_shape"]].dtype in ("I64", "I32"):
        return tuple(int(n) for n in survey.stored(parts["weight_shape"]))
    if "qweight" in parts and len(shapes["qweight"]) == 2:
        said = stated(patient, parts["qweight"].removesuffix(".qweight")) or Stated()
        rows, columns = shapes["qweight"]
        if said.bits in (2, 3, 4, 8):
            return (columns * 32 // said.bits, rows) if said.awq else (columns, rows * 32 // said.bits)
        return None
    if "weight_packed" in parts and survey.tensors[parts["weight_packed"]].dtype == "U8" and len(shapes["weight_packed"]) == 2:
        return shapes["weight_packed"][0], 2 * shapes["weight_packed"][1]
    state = next((name for part, name in parts.items() if part.startswith("weight.quant_state.")), None)
    if state is not None:
        return _state_shape(patient, state)
    if "weight" in parts:
        shape = shapes["weight"]
        halves = "weight_scale_2" in parts and survey.tensors[parts["weight"]].dtype == "U8" and len(shape) == 2
        return (shape[0], 2 * shape[1]) if halves else shape
    return None


def _state_shape(patient: Patient, name: str) -> tuple[int, ...] | None:
    if patient.survey.tensors[name].nbytes > 1 << 16:
        return None
    try:
        shape = json.loads(patient.survey.stored(name).tobytes())["shape"]
        return tuple(shape) if isinstance(shape, list) and all(type(n) is int for n in shape) else None
    except (ValueError, KeyError, TypeError):
        return None


def check(patient: Patient) -> Iterator[Finding]:
    tensors = patient.survey.tensors
    for module, parts in patient.weights.items():
        said = stated(patient, module)
        if said is None:
            continue
        if {"qweight", "scales"} <= parts.keys() and tensors[parts["qweight"]].dtype in INTS:
            yield from _words(patient, module, parts, said)
        if "weight_packed" in parts and tensors[parts["weight_packed"]].dtype in INTS:
            yield from _pack_quantized(patient, module, parts, said)
        if "weight_scale" in parts and said.group is not None and said.group > 0:
            shape = logical_shape(patient, parts)
            scales = tensors[parts["weight_scale"]].shape
            if shape is not None and len(shape) == 2 and len(scales) == 2 and shape[1] and scales[1] > 1:
                yield from _groups(parts["weight_scale"], shape[1], scales[1], said)


def _words(patient: Patient, module: str, parts: Mapping[str, str], said: Stated) -> Iterator[Finding]:
    """GPTQ and AWQ."""
    tensors = patient.survey.tensors
    words, scales = tensors[parts["qweight"]].shape, tensors[parts["scales"]].shape
    if len(words) != 2 or len(scales) != 2 or not all((*words, *scales)):
        return
    out = scales[1]
    along_outputs = words[1] != out
    if along_outputs != said.awq and (words[1] == out or words[1] * 32 % out == 0):
        yield LAYOUT(parts["qweight"], f"qweight {list(words)} beside scales {list(scales)}: packed along {'outputs' if along_outputs else 'inputs'}, "
                                       f"quant_method is {patient.method}")
        return
    zeros = tensors[parts["qzeros"]].shape if "qzeros" in parts else ()
    order = tensors[parts["g_idx"]].shape if "g_idx" in parts else ()
    if along_outputs:
        bits = words[1] * 32 / out
        inputs = words[0]
    else:
        bits = words[0] * 32 / order[0] if len(order) == 1 and order[0] else zeros[1] * 32 / out if len(zeros) == 2 and zeros[0] else said.bits or 0
        inputs = order[0] if len(order) == 1 and order[0] else int(words[0] * 32 / bits) if bits else 0
    if said.bits is not None and bits != said.bits:
        yield BITS(parts["qweight"], f"qweight {list(words)} beside scales {list(scales)} means {bits:g} bits, the config states {said.bits}")
        return
    yield from _groups(parts["scales"], inputs, scales[0], said)
    if len(order) == 1 and inputs:
        yield from _order(patient, parts["g_idx"], inputs, scales[0])


def _groups(name: str, inputs: int, groups: int, said: Stated) -> Iterator[Finding]:
    if said.group is None:
        return
    size = said.group if said.group > 0 else inputs
    if size and groups != math.ceil(inputs / size):
        yield GROUP(name, f"{groups} groups over {inputs} inputs, the config states groups of {size}, which are {math.ceil(inputs / size)}")
    elif size and inputs % size:
        yield RAGGED(name, f"{inputs} inputs in groups of {size} leave {inputs % size} over")


def _order(patient: Patient, name: str, inputs: int, groups: int) -> Iterator[Finding]:
    if patient.survey.tensors[name].dtype not in ("I32", "I64"):
        return
    index = patient.survey.stored(name)
    if int(index.min()) < 0 or int(index.max()) >= groups:
        yield ORDER(name, f"values from {int(index.min())} to {int(index.max())}, there are {groups} groups")
    elif patient.quantization.get("desc_act") is False and bool((index[1:] < index[:-1]).any()):
        yield ORDER(name, f"desc_act is false, but {int((index[1:] < index[:-1]).sum())} inputs of {inputs} lie out of order")


def _pack_quantized(patient: Patient, module: str, parts: Mapping[str, str], said: Stated) -> Iterator[Finding]:
    shape, words = logical_shape(patient, parts), patient.survey.tensors[parts["weight_packed"]].shape
    if shape is None or len(shape) != 2 or len(words) != 2 or said.bits is None or not 1 <= said.bits <= 8:
        return
    dense, padded = -(-shape[1] * said.bits // 32), -(-shape[1] // (32 // said.bits))
    if words[0] != shape[0] or words[1] not in (dense, padded):
        yield BITS(parts["weight_packed"], f"{list(words)} for a weight {list(shape)} of {said.bits} bits, expected [{shape[0]}, {dense}]")
    elif words[1] != dense:
        yield OLD(parts["weight_packed"], f"{words[1]} words a row; today's packing of {shape[1]} x {said.bits} bits has {dense}")


CHECK = Check(check, (BITS, GROUP, LAYOUT, RAGGED, OLD, ORDER))
