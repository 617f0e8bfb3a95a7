"""`octavo convert`: the table, JSON, what is wrong with a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import main


@pytest.fixture
def model(tiny_model: Path, cache_dir: Path) -> Path:
    """A real model; what is remembered of it lies in a folder of the test's own."""
    return tiny_model


def test_table(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["convert", str(model), str(tmp_path / "out"), "--to", "fp8"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["F32", "Wfp8b128x128", "35"] in [row[:3] for row in rows] and "quantized from F32" in out and "exact" in out
    assert f"wrote {tmp_path / 'out'}" in out and "bits per weight" in out


def test_json_of_a_dry_run(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(model), str(tmp_path / "out"), "--to", "fp8", "--keep", "*down_proj*", "--keep", "*up_proj*", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dry_run"] and not (tmp_path / "out").exists()
    assert found["tensors"][0]["written"] == "Wfp8b128x128" and found["tensors"][0]["tensors"] == 25 and not found["tensors"][0]["exact"]
    assert found["bytes_after"] == sum(row["bytes_after"] for row in found["tensors"])


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--to: no format"), (["--to", "fp8", "--shard-size", "many"], "cannot read the size 'many'"), (["--to", "fp9"], "unknown target 'fp9'"),
    (["--to", "fp8", "--quantization", "W4g32A16"], "add --requantize"),
])
def test_one_line_says_what_is_wrong(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["convert", str(model), str(tmp_path / "out"), *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 1 and not told.out
    assert not (tmp_path / "out").exists()
