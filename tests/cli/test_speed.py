"""`octavo speed` on a tiny model and on a real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main

ROW = {"what", "prompt", "batch", "tokens_per_s", "min", "max"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this file's tests: the machine is measured once."""
    yield tmp_path_factory.mktemp("cache")


def speed(capsys: pytest.CaptureFixture[str], kept: Path, model: Path, *options: str) -> dict[str, Any]:
    assert main(["speed", str(model), "--cache-dir", str(kept), "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def check(found: dict[str, Any]) -> None:
    assert set(found) == {"machine", "model", "scheme", "rows"} and found["rows"]
    machine = found["machine"]
    assert machine["ceilings"]["int8_ops_per_s"] > 0 and machine["ceilings"]["read_bytes_per_s"] and machine["fingerprint"]
    for row in found["rows"]:
        assert set(row) >= ROW
        assert 0 < row["min"] <= row["tokens_per_s"] <= row["max"]
        assert row["least_step_seconds"] > 0 and 0 < row["share_of_ceiling"] < 1.5 and row["bound"] in ("bytes", "operations")
        assert 0 < row["outside_native_share"] < 1


def test_rows_of_a_tiny_model(tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = speed(capsys, kept, tiny_model, "--quantization", "8bit", "--prompt", "32,100", "--new", "12", "--batch", "1,3", "--context", "20",
                  "--repetitions", "3", "--threads", "2")
    check(found)
    assert found["machine"]["threads"] == 2 and found["scheme"].startswith("W8")
    assert [(r["what"], r["prompt"], r["batch"]) for r in found["rows"]] == [("prefill", 32, 1), ("prefill", 100, 1), ("decode", 20, 1), ("decode", 20, 3)]
    assert [(r["repetitions"], r["steps"]) for r in found["rows"]] == [(3, 3), (3, 3), (3, 12), (3, 12)]
    short, long, one, three = found["rows"]
    layers = 5 * (64 * 128 + 64 * 64 + 2 * 64 * 172 + 172 * 64)
    head = 512 * 64
    assert (short["int_ops"], long["int_ops"]) == (2 * (32 * layers + head), 2 * (100 * layers + head))
    assert (one["int_ops"], three["int_ops"]) == (2 * (layers + head), 6 * (layers + head))
    assert one["weight_bytes"] == three["weight_bytes"] == short["weight_bytes"] and three["cache_bytes"] == pytest.approx(3 * one["cache_bytes"], rel=0.1)


def test_a_real_model(smollm2_path: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = speed(capsys, kept, smollm2_path, "--quantization", "4bit", "--prompt", "600", "--new", "24", "--batch", "2", "--context", "16",
                  "--repetitions", "1")
    check(found)
    prefill, decode = found["rows"]
    assert prefill["steps"] == 2  # chunks of 512 and 88
    assert decode["int_ops"] == 4 * 134_479_872  # a multiplication and an addition for each of its weights in linears, for each of two tokens
    assert 60e6 < decode["weight_bytes"] < 100e6


def test_only_one_kind_and_the_table(tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cache-dir", str(kept), "--new", "3", "--batch", "1", "--prompt", "0", "--context", "4"]
    assert main(["speed", str(tiny_model), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "tokens/s" in lines[2] and [line.split()[0] for line in lines[3:5] if line] == ["decode"] and lines[-1].startswith("ceilings: ")
    found = speed(capsys, kept, tiny_model, "--batch", "0", "--prompt", "8", "--repetitions", "1")
    assert [r["what"] for r in found["rows"]] == ["prefill"]


@pytest.mark.parametrize(("options", "said"), [
    (["--prompt", "many"], "--prompt: whole numbers above 0"),
    (["--prompt", "512,-1"], "--prompt: whole numbers above 0"),
    (["--batch", "1,,2"], "--batch: whole numbers above 0"),
    (["--batch", "0", "--prompt", "0"], "nothing to measure"),
    (["--new", "0"], "--new: must be above 0"),
    (["--repetitions", "0"], "--repetitions: must be above 0"),
    (["--prompt", "513"], "--prompt: 513 tokens and 1 more are beyond the model's 512"),
    (["--prompt", "0", "--context", "500"], "--context: 500 tokens"),
    (["--prompt", "8", "--backend", "reference"], "reference backend cannot be measured"),
    (["--isa", "mmx"], "--isa"),
])
def test_what_cannot_be_measured(options: list[str], said: str, tiny_model: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["speed", str(tiny_model), "--cache-dir", str(kept), *options]) == 2
    assert said in capsys.readouterr().err
