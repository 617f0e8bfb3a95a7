"""lm-eval's real harness on Octavo's engine: `make test-harness` (lm-eval brings datasets, pyarrow and more, too much for every test run)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from octavo.cli import main
from octavo.evaluate.harness import Harness
from octavo.evaluate.tasks import TASKS, questions
from octavo.loading import LoadedModel, load
from octavo.quality import Windows, logits_of, negative_log_likelihood


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue("shared_data") / "models" / "stories260k-hf", quantization="16bit", use_cache=False)


def loss(loaded: LoadedModel, before: str, after: str) -> float:
    """-log probability of `after` behind `before`, by a forward of its own."""
    context, whole = loaded.text.encode(before), loaded.text.encode(before + after)
    windows = Windows(np.array([whole], np.int32), np.array([len(whole) - len(context)]))
    return sum(float(negative_log_likelihood(logits, targets).sum()) for logits, targets in logits_of(loaded, windows))


def test_choices_are_those_of_the_likeliest_answer(loaded: LoadedModel, shared_data: Path) -> None:
    folder = shared_data / "eval"
    scores = Harness(["piqa"], folder, limit=12)(loaded)
    asked = questions(TASKS["piqa"], next(folder.glob("piqa*.jsonl")))[:12]
    expected = [float(np.argmin([loss(loaded, one["query"], f" {choice}") for choice in one["choices"]]) == one["gold"]) for one in asked]
    assert scores.values["piqa"]["acc"].tolist() == expected and set(scores.values["piqa"]) == {"acc", "acc_norm"}


def test_words_and_answers(loaded: LoadedModel, shared_data: Path) -> None:
    """A log likelihood with a perplexity, and text that the engine writes."""
    scores = Harness(["lambada", "gsm8k"], shared_data / "eval", limit=3)(loaded)  # gsm8k writes up to 256 tokens a question
    asked = questions(TASKS["lambada"], next((shared_data / "eval").glob("lambada*.jsonl")))[:3]
    expected = [-loss(loaded, one["query"], f" {one['gold']}") for one in asked]
    assert scores.values["lambada"]["perplexity"] == pytest.approx(expected, rel=1e-2)
    assert scores.totals["lambada"]["perplexity"] == pytest.approx(np.exp(-np.mean(expected)), rel=2e-2)
    assert scores.values["gsm8k"]["exact_match"].tolist() == [0.0, 0.0, 0.0], "a model of 260,000 parameters"


def test_the_command(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shared_data / "models" / "stories260k-hf"
    assert main(["evaluate", str(model), "--quantization", "W4g32A16", "--against", str(model), "--tasks", "piqa", "--task-data", str(shared_data / "eval"),
                 "--limit", "8", "--no-cache", "--json"]) == 0
    acc = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"]["piqa"]["acc"]
    assert acc["low"] < acc["value"] < acc["high"] and acc["difference"]["low"] < acc["difference"]["value"] < acc["difference"]["high"]
    assert main(["evaluate", str(model), "--tasks", "no-such-task", "--no-cache"]) == 2, "reads all of lm-eval's own tasks first"
    assert "lm-eval cannot run this" in capsys.readouterr().err
