"""The command line: discovery, exit codes, one-line errors, and a start that imports only what the verb needs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import pytest

import octavo
from octavo.cli import Command, _app, main
from octavo.errors import CheckpointError, OctavoError

ROOT = Path(octavo.__file__).parents[1]


@dataclass
class Options:
    model: str
    """A folder."""
    _: KW_ONLY
    threads: int | None = None
    cache: bool = True
    stop: tuple[str, ...] = ()


def parse(*tokens: str) -> Options:
    seen: list[Options] = []

    def run(options: Options) -> None:
        """Try it."""
        seen.append(options)

    _app.build([Command("try", Options, run)])(["try", *tokens], exit_on_error=False, result_action="return_value")
    return seen[0]


def test_the_dataclass_is_the_command_line() -> None:
    assert parse("m", "--threads", "2", "--no-cache", "--stop", "a", "--stop", "b") == Options("m", threads=2, cache=False, stop=("a", "b"))
    assert parse("--model", "m") == Options("m")


def test_every_verb_is_found_and_holds_a_command() -> None:
    import importlib

    for name, module in _app.verbs().items():
        command = importlib.import_module(module).COMMAND
        assert isinstance(command, Command) and command.name == name and command.help, module


@pytest.mark.parametrize("tokens", [["no-such-verb"], ["serve"], ["serve", "m", "--threads", "many"], ["serve", "m", "--no-such-option"]])
def test_bad_usage_is_one_line_and_2(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("octavo: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(("error", "status"), [(CheckpointError("bad\nfile"), 2), (OctavoError("failed"), 1), (KeyboardInterrupt(), 130)])
def test_errors_become_exit_codes(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def build(commands: object) -> object:
        raise error

    monkeypatch.setattr(_app, "build", build)
    assert main(["--version"]) == status
    assert capsys.readouterr().err.count("\n") == (0 if status == 130 else 1)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == octavo.__version__


def test_help_imports_nothing_heavy() -> None:
    """Neither the HTTP stack nor the tensor libraries: help is a matter of a few hundred milliseconds."""
    program = "import sys, octavo.cli; octavo.cli.main(['--help']); print(sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    loaded = set(eval(run.stdout.strip().splitlines()[-1]))
    assert not loaded & {"fastapi", "starlette", "uvicorn", "pydantic", "torch", "transformers", "huggingface_hub", "llguidance"}


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m octavo list schemes | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(command, shell=True, executable="/bin/bash", check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode in (0, 141) and run.stderr == ""
