"""Killed at any moment, a conversion leaves nothing visible, and the same command ends with the same bytes. Disks that refuse leave nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import CheckpointError

from .small_model import contents, make

KILLS = 20
# The journal is written after every tensor, as with a large model, whose tensors take longer than a second each; `slow` makes room between them.
PROGRAM = """
import sys, time
from octavo.checkpoints import _partial
from octavo.conversion import convert
_partial.COMMIT_SECONDS = 0.0
source, out, to, slow = sys.argv[1:]
print("ready", flush=True)
report = convert(source, out, to=to, threads=2, shard_size=1_000_000, on_progress=lambda *_: time.sleep(float(slow)))
print("resumed", report.resumed, flush=True)
"""


def start(source: Path, out: Path, to: str = "fp8", slow: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(source), str(out), to, str(slow)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_random_moments(model: Path, tmp_path: Path) -> None:
    """SIGKILL at 20 moments, spread over the whole run; every other time the next run is killed, too."""
    whole = tmp_path / "whole"
    process = start(model, whole)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    began = time.perf_counter()
    process.communicate()
    lasts = time.perf_counter() - began
    expected = contents(whole)
    rng = random.Random(4)
    killed = resumed = 0
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        for _ in range(1 + number % 2):
            process = start(model, out, slow=0.01)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0, 1.2 * lasts + 0.2))
            process.kill()
            process.communicate()
            killed += process.returncode == -signal.SIGKILL
            if out.exists():
                break
        visible = {p.name for p in tmp_path.iterdir() if p.name.startswith(out.name)}
        assert visible <= {out.name}, "only the whole checkpoint has a name that shows"
        if not out.exists():
            last = start(model, out)
            printed, errors = last.communicate(timeout=120)
            assert last.returncode == 0, errors
            resumed += int(printed.split()[-1]) > 0
        assert contents(out) == expected
    assert killed >= KILLS // 2 and resumed >= 3, (killed, resumed)
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".out")} <= {f".out{n}.octavo-partial" for n in range(KILLS)}


class Stopped(KeyboardInterrupt):
    pass


def stop_after(count: int) -> object:
    seen: list[str] = []

    def progress(done: int, total: int, name: str) -> None:
        seen.append(name)
        if len(seen) == count:
            raise Stopped

    return progress


def test_ctrl_c_then_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.checkpoints._partial.COMMIT_SECONDS", 0.0)
    convert(model, tmp_path / "whole", to="fp8")
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "out", to="fp8", threads=1, on_progress=stop_after(9))
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.octavo-partial" / "journal").is_file()
    report = convert(model, tmp_path / "out", to="fp8")
    assert report.resumed == 9 and contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / ".out.octavo-partial").exists()


@pytest.mark.parametrize("change", ["options", "source", "journal", "size"])
def test_what_was_begun_otherwise_is_begun_anew(model: Path, tmp_path: Path, change: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "out", to="fp8", threads=1, on_progress=stop_after(9))
    partial = tmp_path / ".out.octavo-partial"
    if change == "source":
        data = bytearray((model / "model.safetensors").read_bytes())
        data[-1] ^= 0x80
        (model / "model.safetensors").write_bytes(data)
    elif change == "journal":
        (partial / "journal").write_text("{")
    elif change == "size":
        with (partial / "out" / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
    keep = ["*up_proj*"] if change == "options" else []
    report = convert(model, tmp_path / "out", to="fp8", keep=keep)
    assert report.resumed == 0 and any("begun anew" in note for note in report.notes) == (change in ("options", "source"))
    convert(model, tmp_path / "whole", to="fp8", keep=keep)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_torn_line_of_the_journal(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.checkpoints._partial.COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "out", to="fp8", threads=1, on_progress=stop_after(9))
    with (tmp_path / ".out.octavo-partial" / "journal").open("a") as journal:
        journal.write('["model.layers.1')
    assert convert(model, tmp_path / "out", to="fp8").resumed == 9


def test_two_at_once(model: Path, tmp_path: Path) -> None:
    process = start(model, tmp_path / "out", slow=0.3)
    assert process.stdout is not None
    while not (tmp_path / ".out.octavo-partial" / "journal").exists():
        time.sleep(0.01)
    with pytest.raises(CheckpointError, match="being written by another process"):
        convert(model, tmp_path / "out", to="fp8")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert open_checkpoint(tmp_path / "out").codec == "fp8"


def test_a_disk_that_is_full(model: Path, tmp_path: Path) -> None:
    """The system's limit on the size of a file stands for the disk: the room is asked for before anything is filled."""
    program = PROGRAM.replace("import sys, time", "import resource, sys, time\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))")
    program += "\n"
    run = subprocess.run([sys.executable, "-c", program.replace("shard_size=1_000_000, ", ""), str(model), str(tmp_path / "out"), "fp8", "0"],
                         capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "cannot be written: File too large" in run.stderr and "GB are needed" in run.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.octavo-partial").exists()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Half a gigabyte of weights."""
    return make(tmp_path_factory.mktemp("big") / "model", tiny_model, layers=4, hidden=2048, inner=8192)


@pytest.mark.parametrize("target", ["safetensors:fp16", "gptq"])
def test_peak_memory(target: str, big: Path, tmp_path: Path) -> None:
    """Below 1 GB and the largest tensor, whatever the size of the model: here half a gigabyte, largest tensor 34 MB, so the bar is far lower."""
    size = (big / "model.safetensors").stat().st_size
    program = """
import re, sys
from octavo.conversion import convert

def peak():  # of this program: what getrusage says includes the memory of the process that started it
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

before = peak()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], threads=2)
print(before, peak())
"""
    run = subprocess.run([sys.executable, "-c", program, str(big), str(tmp_path / "out"), target], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    before, peak = map(int, run.stdout.split())
    assert size > 500_000_000 and before < 150_000_000 and peak < 400_000_000, (size, before, peak)


def test_threads_end_with_an_error(model: Path, tmp_path: Path) -> None:
    """A damaged tensor ends the others' work; no thread is left behind."""
    header = json.loads((model / "model.safetensors").read_bytes()[8:][: int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")])
    begin = 8 + int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")
    at = begin + header["model.layers.0.mlp.gate_proj.weight"]["data_offsets"][0]
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"\xc0\x7f")
    before = threading.active_count()
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight' holds NaN"):
        convert(model, tmp_path / "out", to="fp8", threads=2)
    assert threading.active_count() == before and not os.path.exists(tmp_path / ".out.octavo-partial")
