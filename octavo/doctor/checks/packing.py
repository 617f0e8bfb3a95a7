"""Conventions of packing that the data contradict: GPTQ's zero points, AWQ's order of columns, bitsandbytes' tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ... import formats
from ..findings import Disorder, Finding
from ..patient import Patient
from ..stated import Stated, stated
from . import Check

ZEROS = Disorder("zero_convention", "error", "symmetric weights whose stored zero points are not the middle: every weight would be off by one step",
                 "set checkpoint_format to the other of gptq and gptq_v2: v1 stores zero points less one, v2 as they are")
SYMMETRY = Disorder("symmetry_contradiction", "error", "the config says symmetric, the zero points differ: engines that trust it ignore them",
                    "set sym to false")
ORDER = Disorder("column_order", "error", "zero points fit the codes only in another order of columns than AWQ's",
                 "the file was packed in another order (0 1 2 … instead of 0 2 4 6 1 3 5 7): pack it again with the tool that made it")
TABLE = Disorder("wrong_table", "error", "the table of values (quant_map) is not that of the type that the weight claims to be",
                 "the type's name in quant_state, or the table, is of another weight: quantize again")
AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # place in the word of column 0, 1, ...
ROWS = 2048  # of codes looked at per weight


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """[n, words] of 32 bits -> [n, fields]: unsigned numbers, low bits first, across word borders (3 bits)."""
    little = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    spread = np.unpackbits(little, axis=1, bitorder="little")
    spread = spread[:, : spread.shape[1] // bits * bits].reshape(len(words), -1, bits)
    return (spread << np.arange(bits, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)


def check(patient: Patient) -> Iterator[Finding]:
    for module, parts in patient.weights.items():
        if {"qweight", "qzeros", "scales"} <= parts.keys():
            said = stated(patient, module)
            if said is not None and said.bits in (2, 3, 4, 8) and patient.survey.tensors[parts["qzeros"]].dtype in ("I32", "U32"):
                yield from (_columns(patient, parts, said) if said.awq else _zeros(patient, parts, said))
        if "weight.quant_map" in parts:
            yield from _table(patient, parts)


def _zeros(patient: Patient, parts: Mapping[str, str], said: Stated) -> Iterator[Finding]:
    assert said.bits is not None
    name, shape = parts["qzeros"], patient.survey.tensors[parts["qzeros"]].shape
    if len(shape) != 2 or not said.sym or 0 in shape:
        return
    values = np.unique(fields(patient.survey.stored(name).reshape(shape), said.bits))
    middle = 1 << (said.bits - 1)
    expected = middle if said.v2 else middle - 1
    other = middle - 1 if said.v2 else middle
    if values.size > 1 and set(values.tolist()) != {expected, 0}:
        yield SYMMETRY(name, f"{values.size} different stored values, from {values[0]} to {values[-1]}")
    elif values.size == 1 and values[0] == other:
        version, right = ("gptq_v2", "gptq") if said.v2 else ("gptq", "gptq_v2")
        yield ZEROS(name, f"all are stored as {other}; under {version} that means {other + (0 if said.v2 else 1)}, the middle of {said.bits} bits is {middle}: "
                          f"they were written as {right}")


def _columns(patient: Patient, parts: Mapping[str, str], said: Stated) -> Iterator[Finding]:
    """Asymmetric weights have means near zero, so a group's mean code is near its zero point: in the right order of columns, and only there."""
    survey = patient.survey
    words, zeros = survey.tensors[parts["qweight"]].shape, survey.tensors[parts["qzeros"]].shape
    if said.bits != 4 or len(words) != 2 or len(zeros) != 2 or words[1] != zeros[1] or not words[0] or not zeros[0] or words[0] % zeros[0]:
        return
    group = words[0] // zeros[0]
    groups = min(zeros[0], max(1, ROWS // group))
    codes = fields(survey.stored(parts["qweight"], 0, groups * group * words[1]).reshape(-1, words[1]), 4).reshape(groups, group, -1)
    means, points = codes.mean(axis=1), fields(survey.stored(parts["qzeros"], 0, groups * words[1]).reshape(-1, words[1]), 4).astype(np.float64)
    if points.std() < 0.2 or means.std() == 0:
        return
    survey.release(parts["qweight"])

    def likeness(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1])

    def ordered(values: np.ndarray) -> np.ndarray:
        return values.reshape(groups, -1, 8)[:, :, AWQ_ORDER]

    same, *others = likeness(means, points), likeness(ordered(means), points), likeness(means, ordered(points))
    if max(others) > 0.5 and max(others) > same + 0.3:
        yield ORDER(parts["qweight"],
                    f"mean codes and zero points correlate at {same:.2f} in one order, at {max(others):.2f} if one of the two lies in plain order")


def _table(patient: Patient, parts: Mapping[str, str]) -> Iterator[Finding]:
    kinds = [part.rpartition("__")[2] for part in parts if part.startswith("weight.quant_state.")]
    name = parts["weight.quant_map"]
    if len(kinds) != 1 or kinds[0] not in ("nf4", "fp4") or not patient.survey.is_float(name):
        return
    table = patient.survey.floats(name)
    expected = np.asarray(formats.get(kinds[0]).decode(np.arange(16, dtype=np.uint8)), np.float32)
    if table.shape != expected.shape or not np.allclose(table, expected, atol=1e-3):
        off = int(np.argmax(np.abs(table - expected))) if table.shape == expected.shape else 0
        shown = f"entry {off} is {table[off]:.4g}, {kinds[0]} has {expected[off]:.4g}" if table.shape == expected.shape else f"{table.size} entries"
        yield TABLE(name, shown)


CHECK = Check(check, (ZEROS, SYMMETRY, ORDER, TABLE))
