"""Experts of a mixture: as many as the router and the config say, and each of them seen by calibration."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from ..findings import Disorder, Finding
from ..patient import INPUT_SCALES, Patient
from . import Check

COUNT = Disorder("expert_count", "error", "experts, router and config do not agree on how many experts there are",
                 "the checkpoint is incomplete: fetch it again")
UNROUTED = Disorder("unrouted_expert", "warning", "no token reaches an expert, or none did in calibration: its scales mean nothing",
                    "calibrate again with more text (or all experts at once), or check the router's row")
_EXPERT = re.compile(r"^(.*\.)experts\.(\d+)\.(.+)$")


def check(patient: Patient) -> Iterator[Finding]:
    survey = patient.survey
    experts: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in survey.tensors:
        if match := _EXPERT.match(name):
            experts[match[1]][int(match[2])][match[3]] = name
    count = next((n for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts") if (n := patient.number(key))), None)
    for at, held in experts.items():
        have = len(held)
        if count is not None and have != count:
            yield COUNT(f"{at}experts", f"{have} experts, the config says {count}; the first missing is {min(set(range(count)) - held.keys(), default=have)}")
        router = next((name for part in ("gate.weight", "router.weight") if (name := at + part) in survey.tensors and survey.is_float(name)), None)
        if router is not None and len(survey.tensors[router].shape) == 2:
            rows = np.concatenate([np.abs(piece).max(axis=1, initial=0.0) for _, piece in survey.pieces(router)])
            if len(rows) != have:
                yield COUNT(router, f"{len(rows)} rows, {have} experts")
            for expert in np.flatnonzero(rows == 0):
                yield UNROUTED(router, f"row {expert} is zero: it never wins, or draws by tie")
        yield from _calibrated(patient, held)


def _calibrated(patient: Patient, held: dict[int, dict[str, str]]) -> Iterator[Finding]:
    """Scales of inputs: missing, zero or the start value where the other experts have real ones."""
    kinds = {kind for parts in held.values() for kind in parts if kind.rpartition(".")[2] in INPUT_SCALES}
    for kind in sorted(kinds):
        lacking = [expert for expert, parts in held.items() if kind not in parts]
        for expert in lacking[:4] if len(lacking) < len(held) else ():
            yield UNROUTED(f"experts.{expert}.{kind}", f"missing; {len(held) - len(lacking)} of {len(held)} experts have it")
        values = {parts[kind]: patient.survey.floats(parts[kind]) for parts in held.values() if kind in parts and patient.survey.is_float(parts[kind])}
        real = [name for name, value in values.items() if value.size and np.isfinite(value).all() and (value > 0).all() and not (value == 1).all()]
        for name, value in values.items():
            if name not in real and real:
                yield UNROUTED(name, f"{float(value.reshape(-1)[0]) if value.size else 'nothing'}; {len(real)} of {len(held)} experts have calibrated ones")


CHECK = Check(check, (COUNT, UNROUTED))
