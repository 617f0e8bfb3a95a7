"""octavo chat: a conversation through standard input, with a real tiny model and with one that has a template."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.cli.chat import Conversation


def test_commands() -> None:
    conversation = Conversation("old", [{"role": "user", "content": "x"}])
    assert conversation.messages[0] == {"role": "system", "content": "old"}
    assert conversation.command("/reset") and conversation.turns == []
    assert conversation.command("/system Be brief.") and conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert conversation.command("/help") and not conversation.command("/exit")


def test_a_conversation(smollm2_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "My name is Bob.\n\n/reset\nWhat is the capital of France?\nSay it again.\n/exit\nnever reached\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["chat", str(smollm2_path), "--quantization", "8bit", "--temperature", "0", "--max-tokens", "12"]) == 0
    answers = capsys.readouterr().out.strip().splitlines()
    assert len(answers) >= 3 and "Paris" in "".join(answers[1:])


def test_a_model_without_a_template(tiny_model: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny_model)]) == 2
    assert "chat template" in capsys.readouterr().err.splitlines()[-1]
