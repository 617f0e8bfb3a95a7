"""Tasks for lm-eval's harness out of a folder of .jsonl files, as configurations of its own kind of task; no network.

A file is found by the beginning of its name (`hellaswag-val.jsonl` is hellaswag). Questions are put as lm-eval's tasks of the same names put them where
the file has what that takes, so that results are of the same kind; but a part of a task is not the task: compare models on the same files only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError

Record = Mapping[str, Any]
LETTERS = "ABCD"


@dataclass(frozen=True)
class Task:
    """How a line of a file becomes a question.

    kind      choice (of several continuations), word (the last one), answer (generated; the last number of it counts)
    question  record -> {"query", "gold"} and for a choice {"choices"}, `gold` then the index of the right one
    examples  beginning of the name of the file that examples are taken from; "": the same file
    """

    kind: str
    question: Callable[[Record], dict[str, Any]]
    examples: str = ""


def _hellaswag(one: Record) -> dict[str, Any]:
    return {"query": one["ctx"], "choices": list(one["endings"]), "gold": int(one["label"])}


def _piqa(one: Record) -> dict[str, Any]:
    return {"query": f"Question: {one['goal']}\nAnswer:", "choices": [one["sol1"], one["sol2"]], "gold": int(one["label"])}


def _arc(one: Record) -> dict[str, Any]:
    choices, key = one["question"]["choices"], str(one["answerKey"])
    labels = [str(choice["label"]) for choice in choices]
    gold = labels.index(key) if key in labels else LETTERS.index(key) if key in LETTERS else int(key) - 1  # some files name both ways
    return {"query": f"Question: {one['question']['stem']}\nAnswer:", "choices": [choice["text"] for choice in choices], "gold": gold}


def _mmlu(one: Record) -> dict[str, Any]:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, one["choices"], strict=True)]
    return {"query": "\n".join([str(one["question"]).strip(), *lines, "Answer:"]), "choices": list(LETTERS), "gold": int(one["answer"])}


def _stated(one: Record) -> dict[str, Any]:
    """The answers are named at the end of the instruction: "Answer format: answer1/answer2"."""
    choices = str(one["instruction"]).partition("Answer format: ")[2].strip().split("/")
    return {"query": f"{one['instruction']}\nthe correct answer is", "choices": choices, "gold": choices.index(one["answer"])}


def _lambada(one: Record) -> dict[str, Any]:
    before, _, word = str(one["text"]).rpartition(" ")
    return {"query": before, "gold": word}


def _gsm8k(one: Record) -> dict[str, Any]:
    return {"query": f"Question: {one['question']}\nAnswer:", "gold": str(one["answer"]).rpartition("####")[2].strip()}


TASKS: Mapping[str, Task] = {
    "hellaswag": Task("choice", _hellaswag), "piqa": Task("choice", _piqa), "arc-easy": Task("choice", _arc), "arc-challenge": Task("choice", _arc),
    "mmlu": Task("choice", _mmlu, "mmlu-dev"), "winogrande": Task("choice", _stated), "boolq": Task("choice", _stated),
    "openbookqa": Task("choice", _stated), "lambada": Task("word", _lambada), "gsm8k": Task("answer", _gsm8k, "gsm8k-train"),
}
TARGETS = {"word": "{{' ' + gold}}"}  # of a log likelihood lm-eval puts nothing between text and target, as its own lambada knows
KINDS: Mapping[str, Mapping[str, Any]] = {
    "choice": {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
               "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]},
    "word": {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                                                             {"metric": "acc", "aggregation": "mean", "higher_is_better": True}]},
    "answer": {"output_type": "generate_until",
               "generation_kwargs": {"until": ["Question:", "\n\n\n"], "do_sample": False, "temperature": 0.0, "max_gen_toks": 256},
               "filter_list": [{"name": "last-number", "filter": [
                   {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}, {"function": "take_first"}]}],
               "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
                                "ignore_punctuation": False, "regexes_to_ignore": [",", "\\$", "\\.$"]}]},
}


def task_configs(names: Sequence[str], folder: Path | None, shots: int = 0) -> list[str | dict[str, Any]]:
    """What lm-eval takes as `tasks`: a configuration for each name that is a file of the folder, the name itself for the others.

    Raises UsageError for a folder without the file, and for files that do not hold such questions.
    """
    found: list[str | dict[str, Any]] = []
    for name in names:
        if name not in TASKS or folder is None:
            found.append(name)
            continue
        task = TASKS[name]
        splits = {"test": questions(task, _file(folder, name, "test", "val", "dev"))}
        if shots:
            splits["train"] = questions(task, _file(folder, task.examples or name, "train", "dev"))
        found.append({
            **KINDS[task.kind], "task": f"octavo_{name.replace('-', '_')}", "custom_dataset": _data(splits), "test_split": "test",
            "doc_to_text": "{{query}}", "doc_to_target": TARGETS.get(task.kind, "{{gold}}"), "num_fewshot": shots,
            **({"fewshot_split": "train"} if shots else {}),
            "metadata": {"version": 1.0},
        })
    return found


def questions(task: Task, path: Path) -> list[dict[str, Any]]:
    """The questions of a file. Raises UsageError."""
    found, number = [], 0
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):  # noqa: B007
            if line.strip():
                found.append(task.question(json.loads(line)))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot be read: {why}", where=str(path)) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"line {number} holds no question of this task ({type(error).__name__}: {error})", where=str(path)) from None
    return found


def _data(splits: Mapping[str, list[dict[str, Any]]]) -> Callable[..., Any]:
    def make(**_: Any) -> Any:
        import datasets

        return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    return make


def _file(folder: Path, name: str, *wanted: str) -> Path:
    """The file whose name begins with `name`, by preference one with a part of `wanted` in it. Raises UsageError."""
    files = sorted(folder.glob(f"{name}*.jsonl"))
    if not files:
        raise UsageError(f"holds no {name}*.jsonl", where=str(folder), remedy=f"tasks with files: {', '.join(sorted(TASKS))}")
    return next((path for part in wanted for path in files if part in path.stem[len(name) :]), files[0])
