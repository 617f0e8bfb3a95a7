"""Break-even batches on machines whose law is known, and predictions for other hardware."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from octavo.advise import DEVICES, MATRIX, BreakEven, Candidate, Limits, Load, break_even, break_evens, decide, on_device, rows_of
from octavo.advise.hardware import FORMATS, SOURCES
from octavo.advise.predict import arithmetic, without_measuring
from octavo.machine import Gpu, Machine
from octavo.schemes import Plan, Scheme

from .synthetic import BATCHES, candidate


def test_where_operations_take_over() -> None:
    """100 M weights at 20 GB/s: 8 bits take 5 ms to read, 4 bits 2.5; a sequence takes 2 ms to compute, and they add up: 53 / 50.5 ms at 24 sequences."""
    few, many = candidate("4bit", 4, 0.05, rate=100e9, law="sum"), candidate("8bit", 8, 0.002, rate=100e9, law="sum")
    found = break_even(few, many)
    assert (found.predicted, found.measured, found.last) == (32, 32, 32) and found.agree
    assert found.gains[0][2] == pytest.approx(7 / 4.5)
    assert str(found) == "4bit over 8bit: pays below 32 sequences (measured), pays below 32 sequences (predicted); they agree"


def test_faster_arithmetic_pays_always() -> None:
    found = break_even(candidate("8bit", 8, 0.0), candidate("16bit", 16, 0.0, rate=200e9))
    assert (found.predicted, found.measured) == (None, None) and found.agree and "pays up to 32 sequences at least" in str(found)


def test_slower_arithmetic_never_pays() -> None:
    found = break_even(candidate("nf4", 4, 0.0, rate=10e9), candidate("16bit", 16, 0.0, rate=200e9))
    assert (found.predicted, found.measured) == (1, 1) and "never pays" in str(found)


@pytest.mark.parametrize(("law", "rate", "expected", "agree"), [
    ("sum", 100e9, (32, 32), True), ("sum", 400e9, (128, None), None), ("sum", 1600e9, (None, None), True),
    ("max", 100e9, (32, 4), False), ("max", 1600e9, (128, None), None),
])
def test_the_prediction_knows_one_sequence_and_a_prompt_only(law: str, rate: float, expected: tuple[int | None, ...], agree: bool | None) -> None:
    """Where reading and computing add up it is exact; where they overlap, the true batch is nearer. A batch beyond the measured 32 is not known."""
    found = break_even(candidate("4bit", 4, 0.0, rate=rate, law=law), candidate("8bit", 8, 0.0, rate=rate, law=law))
    assert ((found.predicted, found.measured), found.agree) == (expected, agree)


@pytest.mark.parametrize(("predicted", "measured", "agree"), [
    (8, 8, True), (4, 8, True), (16, 8, True), (2, 8, False), (32, 8, False), (None, None, True), (None, 32, False), (16, None, False), (32, None, None),
    (64, None, None), (1, 1, True),
])
def test_within_one_power_of_two(predicted: int | None, measured: int | None, agree: bool | None) -> None:
    """None: beyond the 32 sequences that were measured, or the 256 that were predicted. What nobody measured confirms nothing, nor does it refute."""
    assert BreakEven("4bit", "8bit", predicted, measured, 32, ()).agree is agree


@pytest.mark.parametrize("law", ["max", "sum"])
def test_a_step_beyond_what_was_measured_is_predicted(law: str) -> None:
    """On the law of the sum almost exactly; else it is continuous with the last measurement, and never below it."""
    whole = candidate("8bit", 8, 0.0, law=law)
    seconds, _, beyond = replace(whole, decode=whole.decode[:3]).step(32)
    assert beyond and seconds > whole.decode[2].seconds
    if law == "sum":
        assert seconds == pytest.approx(whole.decode[5].seconds, rel=0.01)
    assert whole.step(3) == (pytest.approx((whole.decode[1].seconds + whole.decode[2].seconds) / 2), 0.0, False)


def test_only_what_was_measured() -> None:
    known = [candidate("16bit", 16, 0.0), candidate("8bit", 8, 0.0, runs=False), candidate("4bit", 4, 0.0)]
    assert [(one.few, one.many) for one in break_evens(known)] == [("4bit", "16bit")]


def test_a_precision_that_could_not_be_loaded_is_predicted() -> None:
    """The law of the synthetic machine is the law of the prediction, so that it must be met."""
    names = {"8bit": "W8A8", "4bit": "W4A8", "16bit": "W16A16", "wint4": "W4A16"}
    schemes = {name: Plan.parse(text).default for name, text in names.items()}
    truth = candidate("4bit", 8 * _bits(schemes["4bit"]) / _bits(schemes["8bit"]), 0.05)
    found = without_measuring("4bit", schemes["4bit"], [candidate("8bit", 8, 0.0)], [schemes["8bit"]], "no memory")
    assert found is not None and found.predicted == "no memory" and not found.runs and math.isnan(found.kl)
    assert [s.seconds for s in found.decode] == pytest.approx([s.seconds for s in truth.decode])
    whole = without_measuring("16bit", schemes["16bit"], [candidate("8bit", 8, 0.0), candidate("wint4", 4, 0.1, rate=50e9)],
                              [schemes["8bit"], schemes["wint4"]], "no memory")
    assert whole is not None and whole.kl == 0.0 and whole.prefill.seconds == pytest.approx(2 * 100e6 * 128 / 50e9)  # the other with 16-bit inputs
    assert without_measuring("4bit", schemes["4bit"], [], [], "no memory") is None


def _bits(scheme: Scheme) -> float:
    return scheme.weight.bits_per_weight((4096, 4096))


def test_other_hardware_is_a_bound_from_its_makers_figures() -> None:
    scheme = Plan.parse("W8A8").default
    here = candidate("8bit", 8, 0.002)
    there = on_device(here, scheme, DEVICES["A100"])
    assert there is not None and "A100" in there.predicted and there.runs
    assert there.decode[0].seconds == pytest.approx(100e6 / 2039e9)
    assert there.prefill.seconds == pytest.approx(max(100e6 / 2039e9, 2 * 100e6 * 128 / 624e12))
    decision = decide([there], Load(), "latency", Limits())
    assert decision.choice is not None and any("prediction" in reason for reason in decision.reasons)
    large = Candidate(**{**vars(here), "weight_bytes": int(50e9)})
    small = on_device(large, scheme, DEVICES["L4"])
    assert small is not None and not small.runs and "do not fit" in small.predicted


@pytest.mark.parametrize(("device", "scheme", "kind"), [
    ("V100", "W8A8", "16bit"), ("T4", "W8A8", "int8"), ("A100", "Wfp8Afp8", "16bit"), ("H100", "Wfp8Afp8", "fp8"), ("H100", "W4A16", "16bit"),
    ("H100", "Wnvfp4Anvfp4", "16bit"), ("B200", "Wnvfp4Anvfp4", "fp4"), ("V100", "Wfp8Afp8", None), ("TPU v5e", "W8A8", "int8"),
    ("Inferentia 1", "W4A16", None), ("Inferentia 2", "Wfp8Afp8", "fp8"), ("L4", "WNF4A16", "16bit"),
])
def test_what_multiplies_a_scheme(device: str, scheme: str, kind: str | None) -> None:
    row = next(row for row in MATRIX if row.device is DEVICES[device])
    assert arithmetic(Plan.parse(scheme).default, row) == kind


def test_the_matrix_is_whole() -> None:
    """Every generation of the requirement, an answer for every format, a source for every row, and the rules of schemes.choose agree with it."""
    from octavo.schemes import choose

    assert {row.key for row in MATRIX} == {"volta", "turing", "ampere", "ada", "hopper", "blackwell", "amx", "avx512vnni", "avx2", "neon", "tpu4", "tpu5e",
                                            "inf1", "inf2"}
    for row in MATRIX:
        assert len(row.answers) == len(FORMATS) and set(row.answers) <= {"native", "emulated", "no"} and row.sources
        assert set(row.sources) | set(row.device.sources if row.device else ()) <= set(SOURCES)
        assert row.device is None or all(row.answer(kind) == "native" for kind in row.device.peaks)
    capabilities = {"volta": (7, 0), "turing": (7, 5), "ampere": (8, 0), "ada": (8, 9), "hopper": (9, 0), "blackwell": (10, 0)}
    kinds = {"int8": "int8", "fp8e4m3": "fp8", "nvfp4": "fp4"}
    machine = Machine(frozenset(), ("portable",), "portable", 1, 1, 1, "")
    for row in MATRIX:
        for preset in ("8bit", "4bit") if row.key in capabilities else ():
            activation = choose(preset, machine, capabilities[row.key]).plan.default.activation.format
            assert activation not in kinds or row.answer(kinds[activation]) == "native", (row.name, preset)
    assert BATCHES[0] == 1


@pytest.mark.parametrize(("isa", "features", "gpus", "rows"), [
    ("avx2", (), (), {"avx2"}), ("amx", (), (), {"amx"}), ("portable", ("asimd",), (), {"neon"}), ("portable", (), (), set()),
    ("avx2", (), ((9, 0),), {"avx2", "hopper"}), ("avx2", (), ((7, 0), (7, 5)), {"avx2", "volta", "turing"}), ("avx2", (), ((8, 6),), {"avx2", "ampere"}),
    ("avx2", (), ((8, 9),), {"avx2", "ada"}), ("avx2", (), ((12, 0), (10, 3)), {"avx2", "blackwell"}), ("avx2", (), ((6, 1),), {"avx2"}),
])
def test_this_machine_is_marked(isa: str, features: tuple[str, ...], gpus: tuple[tuple[int, int], ...], rows: set[str]) -> None:
    found = tuple(Gpu("a GPU", capability, 1, 1) for capability in gpus)
    assert rows_of(Machine(frozenset(features), (isa,), isa, 2, 1, 1, "", found)) == rows
