"""Files of questions, and what the scores of two models make together."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import MissingExtraError, UsageError
from octavo.evaluate.harness import TaskScores, compare_tasks, make_model
from octavo.evaluate.tasks import TASKS, questions, task_configs


def test_every_task_reads_its_file(shared_data: Path) -> None:
    for name, config in zip(TASKS, task_configs(list(TASKS), shared_data / "eval"), strict=True):
        assert isinstance(config, dict) and config["task"] == f"octavo_{name.replace('-', '_')}"
    some = {name: questions(TASKS[name], next((shared_data / "eval").glob(f"{name}*.jsonl")))[0] for name in ("arc-easy", "boolq", "mmlu", "lambada")}
    assert some["arc-easy"]["choices"][some["arc-easy"]["gold"]] == "cellular telephone"
    assert some["boolq"]["choices"] == ["true", "false"] and some["boolq"]["gold"] == 0
    assert some["mmlu"]["query"].endswith("Answer:") and some["mmlu"]["choices"] == ["A", "B", "C", "D"]
    assert some["lambada"]["gold"] == "Helen" and some["lambada"]["query"].endswith("replied")


def test_a_word_begins_with_its_space(shared_data: Path) -> None:
    """lm-eval puts a target of log likelihoods right behind the text; answers to be chosen get a space from it."""
    word, choice = task_configs(["lambada", "piqa"], shared_data / "eval")
    assert isinstance(word, dict) and isinstance(choice, dict)
    assert word["doc_to_target"] == "{{' ' + gold}}" and choice["doc_to_target"] == "{{gold}}"


def test_other_names_are_lm_evals(tmp_path: Path) -> None:
    assert task_configs(["wikitext", "piqa"], None) == ["wikitext", "piqa"]
    with pytest.raises(UsageError, match=r"holds no piqa\*"):
        task_configs(["piqa"], tmp_path)
    (tmp_path / "piqa.jsonl").write_text(json.dumps({"goal": "x"}))
    with pytest.raises(UsageError, match="line 1 holds no question"):
        task_configs(["piqa"], tmp_path)


def test_scores_are_paired() -> None:
    draw = np.random.default_rng(0)
    before = (draw.random(400) < 0.6).astype(float)
    after = before.copy()
    after[:20] = 0.0
    found = compare_tasks(TaskScores({"piqa": {"acc": after, "perplexity": np.full(400, -2.0)}}, {"piqa": {"other": 3.0}}),
                          TaskScores({"piqa": {"acc": before, "perplexity": np.full(400, -1.5)}}))["piqa"]
    assert found["documents"] == 400 and found["other"] == {"value": 3.0, "low": None, "high": None}
    acc = found["acc"]
    assert acc["value"] == after.mean() and acc["original"]["value"] == before.mean()
    assert acc["difference"]["low"] < after.mean() - before.mean() < acc["difference"]["high"]
    assert acc["difference"]["high"] - acc["difference"]["low"] < 0.5 * (acc["high"] - acc["low"]), "pairing takes the questions' difficulty out"
    assert found["perplexity"]["value"] == pytest.approx(np.exp(2.0)) and found["perplexity"]["ratio"]["value"] == pytest.approx(np.exp(0.5))


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"octavo\[eval\]"):
        make_model(None)  # type: ignore[arg-type]
