"""Ceilings: measured, kept for this machine, measured again when they must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo import _native
from octavo import ceilings as room
from octavo.ceilings import MEBI, Ceilings, Rates, ceilings, measure
from octavo.machine import Machine, detect

MACHINE = detect()
KNOWN = Ceilings("f", "avx2", (Rates(1, ((1000, 10.0), (100000, 2.0)), 100.0, 30.0), Rates(4, ((1000, 40.0), (100000, 5.0)), 400.0, 90.0)))


def test_rates_of_this_machine_are_plausible() -> None:
    found = measure(MACHINE, sizes=(MEBI, 8 * MEBI), budget=0.2)
    assert found.fingerprint == MACHINE.fingerprint and found.rates[0].threads == 1 and found.rates[-1].threads == MACHINE.cores
    for rates in found.rates:
        assert [size for size, _ in rates.read] == [MEBI, 8 * MEBI]
        assert all(1e8 < rate < 1e13 for _, rate in rates.read)  # not optimized away, and not of a microsecond's measurement
        assert 1e8 < rates.ints < 1e15 and 1e8 < rates.floats < 1e14


@pytest.mark.parametrize("isa", [*_native.available_isas(), *(["amx_emulated"] if "avx2" in _native.available_isas() else [])])
def test_every_instruction_set_has_ceilings(isa: str) -> None:
    team, data = _native.Team(2), np.ones(MEBI + 64, np.uint8)
    data = data[-data.ctypes.data % 64 :]
    assert _native.read_rate(team, isa, data, 0.005) > 1e8
    assert _native.operation_rate(team, isa, True, 0.005) > 1e8 and _native.operation_rate(team, isa, False, 0.005) > 1e8
    with pytest.raises(ValueError, match="64-byte aligned"):
        _native.read_rate(team, isa, data[1:], 0.005)


def test_the_best_set_is_the_fastest_at_integers() -> None:
    team = _native.Team(1)
    best, portable = (max(_native.operation_rate(team, isa, True, 0.01) for _ in range(3)) for isa in (MACHINE.isas[0], "portable"))
    assert best >= portable


def test_an_unknown_set_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot run here"):
        _native.operation_rate(_native.Team(1), "mmx", True, 0.001)


def test_between_two_sizes_and_two_numbers_of_threads() -> None:
    one = KNOWN.of(1)
    assert one.read_rate(1) == one.read_rate(1000) == 10.0 and one.read_rate(1e9) == 2.0 and one.read_rate(10000) == pytest.approx(6.0)
    two = KNOWN.of(2)
    assert two.threads == 2 and two.ints == pytest.approx(200.0) and two.floats == pytest.approx(50.0) and two.read_rate(1000) == pytest.approx(20.0)
    assert KNOWN.of(4) is KNOWN.rates[1] and KNOWN.of(64) is KNOWN.rates[1]


def test_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, notes = [], []

    def pretend(machine: Machine) -> Ceilings:
        measured.append(machine)
        return replace(KNOWN, fingerprint=machine.fingerprint, isa=machine.isa)

    monkeypatch.setattr(room, "measure", pretend)
    first = ceilings(MACHINE, tmp_path, note=notes.append)
    assert ceilings(MACHINE, tmp_path) == first and len(measured) == 1 and len(notes) == 1
    ceilings(MACHINE, tmp_path, again=True)
    assert len(measured) == 2
    assert ceilings(replace(MACHINE, cores=MACHINE.cores + 1), tmp_path).fingerprint != first.fingerprint and len(measured) == 3


@pytest.mark.parametrize("damage", [
    "", "{", "[]", "{}", '{"version": 1}', "rates", "version", "negative", "text",
])
def test_what_is_damaged_is_measured_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = replace(KNOWN, fingerprint=MACHINE.fingerprint, isa=MACHINE.isa)
    monkeypatch.setattr(room, "measure", lambda machine: right)
    ceilings(MACHINE, tmp_path)
    (path,) = (tmp_path / "ceilings").iterdir()
    whole = json.loads(path.read_text())
    changed = {"rates": {**whole, "rates": []}, "version": {**whole, "version": 0}, "negative": {**whole, "rates": [{**whole["rates"][0], "ints": -1}]},
               "text": {**whole, "rates": [{**whole["rates"][0], "read": [[1, "fast"]]}]}}
    path.write_text(json.dumps(changed[damage]) if damage in changed else damage)
    notes: list[str] = []
    assert ceilings(MACHINE, tmp_path, note=notes.append) == right and notes == ["measuring what this machine can do"]
    assert ceilings(MACHINE, tmp_path, note=notes.append) == right and len(notes) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(room, "measure", lambda machine: KNOWN)
    notes: list[str] = []
    assert ceilings(MACHINE, tmp_path / "file", note=notes.append) is KNOWN
    assert "could not be kept" in notes[-1]
