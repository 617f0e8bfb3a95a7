"""`octavo advise` whole, on a real model of 0.26 M parameters: it measures, decides, explains and draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.machine import detect


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this file's tests."""
    return tmp_path_factory.mktemp("cache")


def advise(capsys: pytest.CaptureFixture[str], model: Path, kept: Path, *options: str, status: int = 0) -> dict[str, Any]:
    usual = ["--cache-dir", str(kept), "--prompt-tokens", "16", "--output-tokens", "8", "--rounds", "1", "--candidates", "16bit,8bit,4bit", "--json"]
    assert main(["advise", str(model), *usual, *options]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_least_memory_within_a_loss(tiny_model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """4 bits are smallest and allowed; the figures are of this model."""
    page = tmp_path / "advice.html"
    found = advise(capsys, tiny_model, kept, "--goal", "memory", "--max-kl", "5", "--users", "2", "--html", str(page))
    decision = found["decision"]
    by_name = {one["name"]: one for one in decision["candidates"]}
    assert list(by_name) == ["16bit", "8bit", "4bit"] and all(one["measured"] and one["p95"] > 0 and one["tokens_per_s"] > 0 for one in by_name.values())
    assert by_name["16bit"]["kl"] < by_name["8bit"]["kl"] < by_name["4bit"]["kl"] < 5
    sizes = {one["name"]: one["weight_bytes"] for one in found["measurements"]}
    assert sizes["16bit"] > 1.7 * sizes["8bit"] > 1.7 * 1.6 * sizes["4bit"]
    fixed = found["measurements"][0]["fixed_bytes"]
    assert decision["choice"] == ("16bit" if sizes["16bit"] < 0.02 * fixed else "4bit")
    for one in found["measurements"]:
        assert [step["rows"] for step in one["decode"]] == [1, 2] and one["prefill"]["rows"] == 16
        assert [step["rows"] for step in one["sweep"]] == [1, 2, 4, 8, 16, 32]
        assert all(step["seconds"] > 0 and step["weight_bytes"] > 0 and step["operations"] > 0 for step in one["decode"] + one["sweep"])
        assert one["sweep"][4]["operations"] > 15 * one["sweep"][0]["operations"]
    assert [(one["few"], one["many"], len(one["gains"])) for one in found["break_even"]] == [("4bit", "8bit", 6), ("8bit", "16bit", 6), ("4bit", "16bit", 6)]
    marked = [row["key"] for row in found["hardware"] if row["this_machine"]]
    row = "avx512vnni" if detect().isa == "avx512bf16" else detect().isa  # the table is about what multiplies integers
    assert marked == ([row] if row != "portable" else marked)
    text = page.read_text()
    assert text.count("<svg") == 5 and "http-equiv" not in text and "src=" not in text and f"Take {decision['choice']}" in text


def test_limits_that_cannot_be_kept(tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = advise(capsys, tiny_model, kept, "--memory", "1kB", status=1)["decision"]
    assert found["goal"] == "quality" and found["choice"] is None and found["nearest"] in ("16bit", "8bit", "4bit") and "nothing keeps" in found["reasons"][0]


def test_other_hardware_and_the_table(tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache-dir", str(kept), "--prompt-tokens", "16", "--output-tokens", "8", "--rounds", "1", "--candidates", "8bit,16bit", "--no-quality"]
    assert main(["advise", str(tiny_model), *options, "--device", "tpuv5e"]) == 1  # what is lost is not known
    shown = capsys.readouterr().out
    assert "TPU v5e (predicted)" in shown and "Sapphire Rapids" in shown and "8bit (predicted)" in shown and "not known" in shown


def test_the_hardware_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("V100", "Blackwell", "TPU v4", "Inferentia 1", "NEON", "PTX ISA"))
    assert main(["advise", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hardware"]) == 14


def test_candidates_run_in_turns() -> None:
    """Where memory holds all of them: each kind of step for all candidates before the next kind, every other round backwards. Else a model at a time."""
    from octavo.advise import Load, Wanted
    from octavo.advise.measure import _turns

    wanted = Wanted("", ("16bit", "nf4"), Load(3, 8), (1, 2))
    first = [(name, *job) for name, job in _turns(wanted, wanted.names, 0, True)]
    assert first == [("16bit", "prompt", 8), ("nf4", "prompt", 8), ("16bit", "decode", 1), ("nf4", "decode", 1), ("16bit", "decode", 3), ("nf4", "decode", 3),
                     ("16bit", "sweep", 1), ("16bit", "sweep", 2)]
    assert [name for name, _ in _turns(wanted, wanted.names, 1, True)][:2] == ["nf4", "16bit"]
    assert [name for name, _ in _turns(wanted, wanted.names, 0, False)] == ["16bit"] * 5 + ["nf4"] * 3


@pytest.mark.parametrize(("options", "said"), [
    (["--p95", "soon"], "--p95: 'soon' is no time"),
    (["--p95", "0s"], "--p95: must be above 0"),
    (["--memory", "4 apples"], "--memory: '4 apples' is no amount of memory"),
    (["--max-kl", "-1"], "--max-kl: must be above 0"),
    (["--users", "0"], "--users: must be above 0"),
    (["--candidates", "8bit,8bit"], "--candidates: '8bit,8bit' is no list"),
    (["--candidates", "9bits"], "9bits"),
    (["--device", "abacus"], "unknown device 'abacus'"),
    (["--prompt-tokens", "100000"], "beyond the model's"),
    (["--html", "/no/such/folder/a.html"], "the folder is missing"),
])
def test_bad_input_is_one_line(options: list[str], said: str, tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(tiny_model), "--cache-dir", str(kept), *options]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_what_cannot_be_loaded_is_predicted(tiny_model: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 bits that do not fit: their figures come from what was measured, they are marked and never taken. Nothing that fits is an error."""
    from octavo.advise import Limits, Load, Wanted, decide, measure
    from octavo.advise.measure import load
    from octavo.errors import CapacityError

    full: set[str] = {"16bit"}

    def small(model: str, *, quantization: str, **options: Any) -> Any:
        if quantization in full:
            raise CapacityError("loading needs 9000 MB, 1 MB are available", where="memory")
        return load(model, quantization=quantization, **options)

    monkeypatch.setattr(sys.modules["octavo.advise.measure"], "load", small)  # the package has a function of that name
    wanted = Wanted(str(tiny_model), ("16bit", "8bit"), Load(1, 8, 4), (1, 2), rounds=1, steps=4, cache_dir=kept)
    candidates, schemes = measure(wanted, detect())
    assert [str(one.weight.format) for one in schemes] == ["bf16", "int8"]
    guess, real = candidates
    assert "9000 MB" in guess.predicted and not guess.runs and guess.kl == 0.0 and not real.predicted and real.kl > 0
    assert 1.7 < guess.weight_bytes / real.weight_bytes < 2.1 and guess.notes == ("predicted from 8bit",)
    decision = decide(candidates, Load(1, 8, 4), "quality", Limits())
    assert decision.choice is not None and decision.choice.name == "8bit" and "does not run here" in decision.verdicts[0].why
    full.add("8bit")
    with pytest.raises(CapacityError):
        measure(wanted, detect())
