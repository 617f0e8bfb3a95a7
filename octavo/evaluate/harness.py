"""lm-eval's harness on a loaded model: its tasks, prompts, filters and metrics; log likelihoods and answers from here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine import Sampling
from ..errors import MissingExtraError, OctavoError, UsageError
from ..quality import Estimate, estimate
from ..quality.shares import share, share_difference
from .scoring import Scorer
from .tasks import task_configs

if TYPE_CHECKING:
    from ..loading import LoadedModel

ANSWER = 256  # tokens of an answer where the task does not say
OnDone = Callable[[int], None]


@dataclass
class TaskScores:
    """Of one model: task -> metric -> the value of each document (float64 [documents]), and what lm-eval makes of them all."""

    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    totals: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Harness:
    """names   of tasks: those of `tasks.TASKS` with a file in `folder`, or lm-eval's own (which download their data)
    limit      most documents of each task
    shots      examples before each question
    """

    names: Sequence[str]
    folder: Path | None = None
    limit: int | None = None
    shots: int = 0

    def __call__(self, loaded: LoadedModel, on_done: OnDone = lambda count: None) -> TaskScores:
        """Raises MissingExtraError without lm-eval, UsageError for tasks that it does not know or cannot load."""
        evaluator = _lm_eval().evaluator
        from lm_eval.tasks import TaskManager

        tasks = task_configs(self.names, self.folder, self.shots)
        with Scorer(loaded) as scorer:
            model = make_model(scorer, on_done)
            try:
                manager = TaskManager(include_defaults=any(isinstance(task, str) for task in tasks))  # reading all of lm-eval's own takes its time
                found = evaluator.simple_evaluate(model=model, tasks=tasks, task_manager=manager, limit=self.limit, num_fewshot=self.shots or None,
                                                  log_samples=True, bootstrap_iters=0)
            except OctavoError:
                raise
            except Exception as error:  # whatever a task, or the download of its data, may raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UsageError(f"lm-eval cannot run this: {first}", where=f"--tasks {','.join(self.names)}",
                                 remedy="check the names; --task-data names a folder of .jsonl files") from error
        return _scores(found)


def compare_tasks(model: TaskScores, original: TaskScores | None) -> dict[str, Any]:
    """JSON: each metric with its 95% interval over documents; with an original also its own, and the difference, paired by document."""
    found: dict[str, Any] = {}
    for task, metrics in model.values.items():
        found[task] = {"documents": max(map(len, metrics.values()), default=0)}
        for metric, values in metrics.items():
            one = found[task][metric] = _estimate(metric, values).to_json()
            before = original.values[task][metric] if original is not None else None
            if before is not None:
                one["original"] = _estimate(metric, before).to_json()  # type: ignore[assignment]
                if metric != "perplexity":
                    paired = share_difference if _is_share(values) and _is_share(before) else estimate
                    one["difference"] = paired(values - before, 1).to_json()  # type: ignore[assignment]
                else:
                    one["ratio"] = estimate(before - values, 1).exp.to_json()  # type: ignore[assignment]
        for metric, value in model.totals.get(task, {}).items():
            if metric not in metrics:
                found[task][metric] = {"value": value if math.isfinite(value) else None, "low": None, "high": None}
    return found


def _estimate(metric: str, values: np.ndarray) -> Estimate:
    """Means of documents; a perplexity is e to the power of the mean loss, of which the documents hold the negative."""
    if metric == "perplexity":
        return estimate(-values, 1, positive=True).exp
    return share(values, 1) if _is_share(values) else estimate(values, 1)


def _is_share(values: np.ndarray) -> bool:
    """Whether each question counts as right or wrong."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def _scores(found: Mapping[str, Any]) -> TaskScores:
    scores = TaskScores()
    for task, rows in found["samples"].items():
        names = [name for name in rows[0].get("metrics", ()) if all(isinstance(row.get(name), (int, float)) for row in rows)] if rows else []
        of_filter = sorted(rows, key=lambda row: row["doc_id"])
        scores.values[_plain(task)] = {name: np.array([float(row[name]) for row in of_filter]) for name in names}
        totals = found["results"].get(task, {})
        scores.totals[_plain(task)] = {name.partition(",")[0]: float(value) for name, value in totals.items()
                                       if isinstance(value, (int, float)) and "_stderr" not in name and "," in name}
    return scores


def _plain(task: str) -> str:
    return task.removeprefix("octavo_").replace("_", "-") if task.startswith("octavo_") else task


def _lm_eval() -> Any:
    try:
        import lm_eval
        import lm_eval.evaluator
    except ImportError as error:
        raise MissingExtraError(f"tasks need lm-eval ({error})", where="--tasks", remedy="pip install 'octavo[eval]'") from None
    return lm_eval


def make_model(scorer: Scorer, on_done: OnDone = lambda count: None) -> Any:
    """An lm_eval.api.model.LM that asks the scorer."""
    _lm_eval()
    from lm_eval.api.model import TemplateLM

    text = scorer.loaded.text

    class OctavoLM(TemplateLM):
        """See make_model."""

        @property
        def eot_token_id(self) -> int:
            return scorer.loaded.eos_token_ids[0] if scorer.loaded.eos_token_ids else 0

        @property
        def prefix_token_id(self) -> int:
            return text.bos_id if text.bos_id is not None else self.eot_token_id

        @property
        def tokenizer_name(self) -> str:
            return scorer.loaded.name

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return text.encode(string, special=add_special_tokens is not False)

        def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
            return scorer.score([(context, after) for _, context, after in requests], on_done)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """Windows of full length one after the other; the first token of each is predicted from the last one before it."""
            pieces: list[tuple[list[int], list[int]]] = []
            owners: list[int] = []
            for number, request in enumerate(requests):
                ids = text.encode(request.args[0], special=False)
                for start in range(0, len(ids), scorer.max_length):
                    pieces.append(([ids[start - 1] if start else self.prefix_token_id], ids[start : start + scorer.max_length]))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for number, (value, _) in zip(owners, scorer.score(pieces, on_done), strict=True):
                sums[number] += value
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            return scorer.generate([(text.encode(request.args[0]), _sampling(request.args[1])) for request in requests], on_done)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return text.chat(chat_history, add_generation_prompt=add_generation_prompt)

    return OctavoLM()


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """lm-eval's generation options: greedy unless it says do_sample."""
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    return Sampling(temperature=temperature, top_p=float(options.get("top_p") or 1.0), stop=tuple(s for s in stop if s),
                    max_tokens=int(options.get("max_gen_toks") or ANSWER), seed=0)
