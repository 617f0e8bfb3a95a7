"""Tuning a model: the stages in order, and the policy that comes out.

    threads -> kernels, alone -> kernels in whole steps -> chunk, batch, cache -> the whole policy through the engine, end to end

Each stage runs under what those before it chose. What a later stage does not confirm falls back to the default; where the end-to-end runs show
no sure gain, or any sure loss, nothing changes.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..kernels.native import NativeOps
from ..loading import LoadedModel, apply_policy, fingerprint
from ..machine import taken_by_others
from ..policy import Gain, KernelChoice, Policy, policy_path, save
from .journal import Journal
from .kernels import ModelKernels
from .native import NativeKernels
from .options import TuneOptions
from .paired import LEAST, Interval
from .question import Answer, Question
from .race import Clock
from .report import spread
from .search import Search, Verdict, Watch
from .stages import Itself, bucket_questions, by_bytes, kernel_questions, setting_questions, thread_question, whole_questions, with_kernels

BUSY = 0.2  # cores that others take
# Where each stage ends, as a share of the budget; what one does not need is left to the next.
THREADS, KERNELS, STEPS, SETTINGS = 0.1, 0.55, 0.7, 0.82


@dataclass(frozen=True)
class Tuned:
    """policy: what was written, empty for "no change"; path: where, if it was. whole: the end-to-end runs. why: the
    verdict in a sentence. notes: what became of an interrupted search before; whether the machine was busy."""

    policy: Policy
    answers: tuple[Answer, ...]
    whole: tuple[Verdict, ...]
    why: str
    seconds: float
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return not self.policy.empty


def tune(loaded: LoadedModel, folder: Path | None, watch: Watch, options: TuneOptions | None = None, now: Callable[[], float] = time.perf_counter) -> Tuned:
    """Search the execution policy of a model on this machine, and write it to `folder`. KeyboardInterrupt passes through: what was measured lies in
    the folder then, and the next search goes on from it. The model runs as before afterwards."""
    return Tuner(loaded, folder, watch, options or TuneOptions(), now).run()


class Tuner:
    def __init__(self, loaded: LoadedModel, folder: Path | None, watch: Watch, options: TuneOptions, now: Callable[[], float] = time.perf_counter) -> None:
        self.loaded, self.options, self.now, self.began = loaded, options, now, now()
        self.facts = fingerprint(loaded)
        self.path = None if folder is None or options.against_itself else policy_path(folder, loaded.name, str(loaded.plan))
        self.journal = Journal(None if self.path is None else self.path.with_suffix(".part.json"), self.facts)
        self.search = Search(Clock(now, self.began + options.budget), self.journal, watch, seed=options.seed)
        self.answers: list[Answer] = []
        self.policy = Policy(self.facts)
        self.busy = _busy()
        self.base = copy.copy(loaded)  # under the threads chosen, default kernels

    def run(self) -> Tuned:
        self._threads()
        self._kernels()
        self._settings()
        whole, why = self._whole()
        if self.policy.empty:
            self.answers = [replace(a, chosen=a.default, why=f"{a.why}; not kept: {why}") if a.changed else a for a in self.answers]
        self.policy = replace(
            self.policy, made=datetime.now(UTC).isoformat(timespec="seconds"), measured=tuple(answer.to_json() for answer in self.answers),
            confirmed={verdict.what: _gain(verdict.interval) for verdict in whole} if not self.policy.empty else {})
        if self.path is not None:
            save(self.path, self.policy.to_json())
            self.journal.remove()
        notes = tuple(filter(None, [self.journal.note, self.busy]))
        return Tuned(self.policy, tuple(self.answers), tuple(whole), why, self.now() - self.began, self.path, notes)

    def _until(self, share: float) -> Clock:
        return Clock(self.now, self.began + share * self.options.budget)

    def _ask(self, questions: Sequence[Question], share: float, stage: str) -> list[Answer]:
        asked = [Itself(question) for question in questions] if self.options.against_itself else questions
        found = self.search.ask([question for question in asked if question.candidates], self._until(share), stage)
        self.answers += found
        return found

    def _threads(self) -> None:
        ops = self.loaded.backend
        if not isinstance(ops, NativeOps) or self.options.fixed_threads or (ops.threads == 1 and not self.options.against_itself):
            return
        (answer,) = self._ask([thread_question(self.loaded)], THREADS, "threads")
        if answer.changed:
            self.policy = replace(self.policy, threads=int(answer.chosen))
            self.base.run_on(NativeOps(int(answer.chosen), ops.isa))

    def _kernels(self) -> None:
        kernels = kernels_of(self.base)
        questions = kernel_questions(kernels, by_bytes(kernels), kernels.selected, self.options)
        answers = self._ask(questions, KERNELS, "kernels")
        choices = [
            KernelChoice(dict(q.site.facts), q.bucket, a.chosen, a.default, _gain(a.interval))
            for q, a in zip(questions, answers, strict=True) if a.changed and a.interval is not None]
        if not choices:
            return
        steps = list(bucket_questions(self.base, choices))
        found = self.search.verify([question for _, question in steps], self._until(STEPS), "kernels in whole steps")
        lost = {}
        for (bucket, step), verdict in zip(steps, found, strict=True):
            if not verdict.gains:
                known = f" ({spread(verdict.interval)}; noise {100 * verdict.floor:.1f}%)" if verdict.interval.pairs >= LEAST else ": the time was up"
                lost[bucket] = f"faster alone, but {step.what} gains nothing that is sure{known}"
        dropped = [q for q, a in zip(questions, answers, strict=True) if a.changed and q.bucket in lost]
        for question in dropped:
            at = next(i for i, a in enumerate(self.answers) if (a.what, a.rows) == (question.what, question.rows))
            self.answers[at] = replace(self.answers[at], chosen=question.default, why=lost[question.bucket])
        self.policy = replace(self.policy, kernels=tuple(choice for choice in choices if choice.rows not in lost))

    def _settings(self) -> None:
        tuned = with_kernels(self.base, self.policy.kernels)
        questions = setting_questions(tuned, self.options)
        names = {"prompt tokens in a step": "max_batch_tokens", "users in a step": "max_batch", "key-value cache": "kv_cache"}
        for answer in self._ask(questions, SETTINGS, "engine"):
            if answer.changed:
                name = names[answer.what]
                chosen: dict[str, Any] = {name: answer.chosen if name == "kv_cache" else int(answer.chosen)}
                self.policy = replace(self.policy, **chosen)

    def _whole(self) -> tuple[list[Verdict], str]:
        """Confirm or drop the policy. With nothing changed there is nothing to confirm, except against itself."""
        if self.policy.empty and not self.options.against_itself:
            return [], "no candidate is surely faster than the default"
        tuned = with_kernels(self.base, ())
        apply_policy(tuned, self.policy)
        questions = whole_questions(self.loaded, tuned, self.policy, self.options, self.search.clock.left)
        whole = self.search.verify(questions, self.search.clock, "end to end")
        losses, gains = [v.what for v in whole if v.loses], [v.what for v in whole if v.gains]
        if self.policy.empty:
            return whole, "against itself: " + ("no change" if not losses and not gains else f"differs in {', '.join(losses + gains)}")
        if losses or not gains:
            self.policy = Policy(self.facts)
            if min(v.interval.pairs for v in whole) < LEAST:
                return whole, "the time was up before the policy was confirmed end to end"
            return whole, f"end to end it is slower in {', '.join(losses)}" if losses else "end to end no gain is sure"
        return whole, f"confirmed end to end: faster in {', '.join(gains)}"


def kernels_of(loaded: LoadedModel) -> ModelKernels:
    """The kernels of the device that the model is on."""
    if loaded.backend.panels:
        return NativeKernels(loaded)
    from .gpu import GpuKernels

    return GpuKernels(loaded)


def _busy() -> str:
    """A warning where other programs were running before the search began: it finds what is fastest beside them."""
    taken = taken_by_others() or 0.0
    return f"other programs kept {taken:.1f} cores busy when the search began: what it found may not hold on a quiet machine" if taken > BUSY else ""


def _gain(one: Interval) -> Gain:
    return Gain(round(one.gain, 4), round(math.expm1(one.low), 4), round(math.expm1(one.high), 4), one.pairs)
