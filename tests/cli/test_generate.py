"""`octavo generate` on a real tiny model."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from octavo.cli import main

pytestmark = pytest.mark.usefixtures("cache_dir")


def test_text_on_stdout_and_all_else_on_stderr(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model), "Once upon a time", "--quantization", "8bit", "--max-tokens", "30", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(", there was") and "tokens/s" in err and "W8A8h" in err


def test_what_the_cache_became_is_told(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model), "Once upon a time", "--kv-cache", "auto", "--max-kl", "1", "--max-tokens", "3"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "by sensitivity" in line]
    assert len(told) == 1 and "C4 in all layers" in told[0] and "bytes per token" in told[0]


def test_prompt_from_file_or_stdin(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    (tmp_path / "prompt").write_text("Once upon a time")
    monkeypatch.setattr("sys.stdin", io.StringIO("Once upon a time"))
    for how in (["Once upon a time"], ["--file", str(tmp_path / "prompt")], []):
        assert main(["generate", str(tiny_model), *how, "--max-tokens", "12", "--no-stream"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] and len(set(answers)) == 1


def test_json_seed_and_several_answers(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, options = [], ["--json", "--n", "3", "--seed", "4", "--temperature", "1", "--max-tokens", "9", "--quantization", "4bit"]
    for _ in range(2):
        assert main(["generate", str(tiny_model), "Once", *options]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["choices"] == results[1]["choices"]
    assert [c["finish_reason"] for c in results[0]["choices"]] == ["length"] * 3 and results[0]["completion_tokens"] == 27


def test_stop_and_schema(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_model), "Once upon a time", "--stop", "was", "--max-tokens", "50"]) == 0
    assert capsys.readouterr().out == ", there \n"
    (tmp_path / "schema").write_text('{"enum": ["red", "green"]}')
    assert main(["generate", str(tiny_model), "The ball is", "--schema", str(tmp_path / "schema")]) == 0
    assert capsys.readouterr().out.strip() in ('"red"', '"green"')


@pytest.mark.parametrize(("extra", "message"), [
    (["a", "--file", "b"], "a prompt and a file"), (["--file", "no-such-file"], "cannot read the prompt"), (["a", "--system", "x"], "chat template"),
    (["a", "--schema", "no-such-file"], "cannot read the schema"), (["a", "--temperature", "-1"], "temperature"), (["a " * 600], "context"),
])
def test_what_cannot_be_is_one_line(tiny_model: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str) -> None:
    assert main(["generate", str(tiny_model), *extra]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("octavo: ") and message in err
