"""Twins: weights of different layers that are the same to the byte, which training never gives and a copying mistake does."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator

from ..findings import Disorder, Finding
from ..patient import CODES, Patient
from . import Check

TWINS = Disorder("identical_weights", "warning", "two weights are the same to the byte",
                 "compare with the source: a layer was copied onto another, or merged with itself")
LEAST = 512  # bytes


def check(patient: Patient) -> Iterator[Finding]:
    survey = patient.survey
    same: dict[tuple[str, tuple[int, ...], bytes], list[str]] = defaultdict(list)
    for parts in patient.weights.values():
        for part in CODES:
            name = parts.get(part)
            if name is None or len(survey.tensors[name].shape) < 2 or survey.tensors[name].nbytes < LEAST or name.startswith("lm_head"):
                continue
            digest, first, constant = hashlib.blake2b(digest_size=16), None, True
            for piece in survey.bytes(name):
                digest.update(piece.data)
                first = piece[0] if first is None else first
                constant = constant and bool((piece == first).all())
            if not constant:
                same[survey.tensors[name].dtype, survey.tensors[name].shape, digest.digest()].append(name)
    for names in same.values():
        for name in names[1:]:
            if "embed" not in name:
                yield TWINS(name, f"the same {survey.tensors[name].nbytes} bytes as {names[0]}")


CHECK = Check(check, (TWINS,))
