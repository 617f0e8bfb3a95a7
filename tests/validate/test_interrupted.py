"""`octavo validate` that does not come to its end: nothing half-written, no server left, and a server that breaks is no pass."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.errors import OctavoError
from octavo.traffic import Closed, Load, Recording, Result, Sample, Target, random_words
from octavo.validate import load

PATIENCE = 120.0


def validate(tiny_model: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    status = main(["validate", str(tiny_model), "--quantization", "8bit", "--users", "2", "--requests", "4", "--runs", "1", "--prompt-tokens", "8",
                   "--output-tokens", "4", "--windows", "4", "--cache-dir", str(folder / "cache"), "--out", str(folder / "out"), *options])
    return status, json.loads((folder / "out" / "report.json").read_text())


def test_interrupted(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo", "validate", str(tiny_model), "--quantization", "8bit", "--users", "2", "--duration", "10m", "--windows", "2",
               "--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        assert any("original, run 1" in line for line in process.stderr)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + PATIENCE
        found: list[int] = []
        while not any(map(_answers, found)):
            assert time.monotonic() < end, "no server was started"
            time.sleep(0.1)
            found = [int(word) for word in children.read_text().split()]
        assert (tmp_path / "out").is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert not (tmp_path / "out").exists(), "an empty folder looks like a report that is gone"
    for child in found:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


def _answers(server: int) -> bool:
    """Whether it takes connections at the port that it was told."""
    words = Path(f"/proc/{server}/cmdline").read_text().split("\0")
    with socket.socket() as one:
        return "--port" in words and one.connect_ex(("127.0.0.1", int(words[words.index("--port") + 1]))) == 0


def test_a_server_that_does_not_start(tiny_model: Path, tmp_path: Path) -> None:
    status, report = validate(tiny_model, tmp_path, "--serve-option=--log-level=nonsense")
    lines = {line["name"]: line for line in report["lines"]}
    assert status == 1 and not report["passed"] and report["verdict"] == "not measured: load"
    assert lines["kl"]["status"] == "pass" and lines["load"]["status"] == lines["latency_p50"]["status"] == "not measured"
    assert "broke off at the original" in lines["load"]["evidence"] and "nonsense" in lines["load"]["evidence"]
    assert report["settings"]["load"]["runs"] == 1 and not report["load"]


@pytest.mark.parametrize("already", [1, 3])
def test_a_model_whose_server_breaks_fails(already: int, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(sides: list[load.Side], traffic: load.Traffic, tell: Any) -> Iterator[Result]:
        for turn in range(already):
            samples = [Sample(n, float(n), float(n), n + 0.5, n + 1.0, n + 1.0, 1, 4) for n in range(40)]
            recording = Recording(Load(Closed(1), None, 40), samples, 0.0, 40.0)
            yield Result.of(sides[turn % 2].label, Target("http://h:1", "m"), random_words(3, 10, 2), recording, None, {})
        raise OctavoError("the server ended: killed", where="octavo serve m")

    monkeypatch.setattr(load, "under_load", broken)
    status, report = validate(tiny_model, tmp_path)
    line = next(line for line in report["lines"] if line["name"] == "load")
    assert status == 1 and line["status"] == "fail" and "broke off at the model" in line["evidence"] and report["verdict"] == "failed 1 of 13"
    assert all(word in report["settings"]["command"] for word in ("octavo validate", "--quantization=8bit", "--requests=4"))


def test_a_former_report_stays(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("{}")
    assert main(["validate", str(tmp_path / "nothing"), "--quantization", "8bit", "--out", str(tmp_path / "out")]) != 0
    assert (tmp_path / "out" / "report.json").read_text() == "{}" and len(capsys.readouterr().err.strip().splitlines()) <= 2
    (tmp_path / "file").write_text("")
    assert main(["validate", str(tiny_model), "--quantization", "8bit", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err
