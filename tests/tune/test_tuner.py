"""Tuning a real model, small: the policy that comes out, what it changes, and that no bit of an answer does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import _native, machine
from octavo.cache import Step
from octavo.errors import UsageError
from octavo.loading import LoadedModel, apply_policy, fingerprint, linear_facts, load, native_of
from octavo.policy import Gain, KernelChoice, Policy, find, policy_path, save
from octavo.tune import TuneOptions, table, tune
from octavo.tune import tuner as tuner_module
from octavo.tune.kernels import KernelQuestion
from octavo.tune.native import NativeKernels
from octavo.tune.question import Question
from octavo.tune.race import Samples
from octavo.tune.whole import EngineWork, Steps, decoding, prompt

from .conftest import Silent

GAIN = Gain(0.1, 0.05, 0.15, 12)
LARGEST = _native.row_buckets()[-1]


@pytest.fixture
def loaded(tiny_model: Path, tmp_path: Path) -> LoadedModel:
    return load(tiny_model, quantization="4bit", cache_dir=tmp_path / "cache", threads=1)


def logits(loaded: LoadedModel, rows: int = 70) -> np.ndarray:
    pool = loaded.new_pool(8)
    return np.stack([loaded.forward(step, pool).copy() for step in prompt(rows, 40)])


def choices(loaded: LoadedModel) -> tuple[KernelChoice, ...]:
    """The last kernel that can, for every kind of linear and bucket."""
    kernels = NativeKernels(loaded)
    return tuple(KernelChoice(dict(site.facts), rows, names[-1], names[0], GAIN) for site in kernels.index for rows in _native.row_buckets()
                 if (names := kernels.kernels(site, rows)))


def test_a_policy_changes_kernels_and_no_bit(loaded: LoadedModel) -> None:
    before = logits(loaded)
    policy = Policy(fingerprint(loaded), choices(loaded), threads=2, max_batch=32)
    applied = apply_policy(loaded, policy)
    assert loaded.backend.threads == 2 and any("2 threads" in what for what in applied) and any("kernels" in what for what in applied)
    _, program = native_of(loaded)
    for index, linear in enumerate(program.linears()):
        for bucket, rows in enumerate(_native.row_buckets()):
            (mine,) = [c for c in policy.kernels if c.problem == linear_facts(linear) and c.rows == rows]
            assert program.chosen(index, bucket) == mine.kernel
    assert np.array_equal(logits(loaded), before)
    assert policy.stale(fingerprint(loaded)) is None


def test_what_the_user_named_stays(loaded: LoadedModel) -> None:
    policy = Policy(fingerprint(loaded), threads=2, kv_cache="int8")
    assert apply_policy(loaded, policy, threads=False, cache=False) == []
    assert loaded.backend.threads == 1 and loaded.cache_spec.format == "bf16"
    apply_policy(loaded, policy)
    assert loaded.cache_spec.format == "int8"


def test_a_policy_for_kernels_that_are_not_there_is_an_error(loaded: LoadedModel) -> None:
    one = choices(loaded)[0]
    for wrong in (replace(one, kernel="no such"), replace(one, rows=3)):
        with pytest.raises(UsageError, match=r"no such|bucket"):
            apply_policy(loaded, Policy({}, (wrong,)))


def test_the_fingerprint_tells_models_schemes_and_machines_apart(loaded: LoadedModel, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = fingerprint(loaded)
    assert json.loads(json.dumps(facts)) == facts
    other = fingerprint(load(tiny_model, quantization="8bit", use_cache=False, isa="portable"))
    assert {name for name in facts if facts[name] != other[name]} >= {"scheme", "linears"}
    here = machine.detect()
    monkeypatch.setattr("octavo.loading._policy.detect", lambda isa: replace(here, cores=here.cores + 6))
    assert f"cores was {here.cores}, is {here.cores + 6}" in str(Policy(facts).stale(fingerprint(loaded)))


def test_every_kernel_here_is_right(loaded: LoadedModel) -> None:
    kernels = NativeKernels(loaded)
    for site in kernels.index:
        for rows in (1, 8, 64):
            default, *others = kernels.kernels(site, rows)
            question = KernelQuestion(kernels, site, rows, max(1, rows // 2 + 1), default, tuple(others))
            assert [question.check(name) for name in [default, *others]] == [None] * (1 + len(others))
            assert 0 < question.seconds(default) < 1


def test_a_search_ends_in_time_and_leaves_a_policy(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logits(loaded)
    tuned = tune(loaded, tmp_path, Silent(), TuneOptions(budget=8, max_batch=4, max_batch_tokens=64, seed=1))
    assert tuned.seconds < 20
    policy, reason = find(policy_path(tmp_path, loaded.name, str(loaded.plan)), fingerprint(loaded))
    assert policy == tuned.policy and reason == ""
    assert tuned.changed or not policy.settings
    assert {row["what"] for row in policy.measured} >= {"prompt tokens in a step", "users in a step"}
    assert [p.name for p in tmp_path.glob("*.part.json")] == []
    assert np.array_equal(logits(loaded), before) and loaded.backend.threads == 1
    from rich.console import Console
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(tuned))
    assert "policy search" in console.export_text()


def test_against_itself_nothing_changes_and_nothing_is_written(loaded: LoadedModel, tmp_path: Path) -> None:
    tuned = tune(loaded, tmp_path / "none", Silent(), TuneOptions(budget=6, max_batch=4, max_batch_tokens=64, against_itself=True))
    assert not tuned.changed and tuned.path is None and not (tmp_path / "none").exists()
    assert all(not answer.changed for answer in tuned.answers) and len(tuned.whole) == 3


def test_an_interrupted_search_goes_on(loaded: LoadedModel, tmp_path: Path) -> None:
    class Leaving(Silent):
        rounds = 0

        def played(self, question: Question, samples: Samples) -> None:
            self.rounds += 1
            if self.rounds > 8:
                raise KeyboardInterrupt

    options = TuneOptions(budget=8, max_batch=4, max_batch_tokens=64)
    with pytest.raises(KeyboardInterrupt):
        tune(loaded, tmp_path, Leaving(), options)
    assert len(list(tmp_path.glob("*.part.json"))) == 1 and not list(tmp_path.glob("*.policy.json"))
    tuned = tune(loaded, tmp_path, Silent(), options)
    assert any("going on" in note for note in tuned.notes) and not list(tmp_path.glob("*.part.json"))


class Planted:
    """Times that follow from what is chosen: `alone`, `steps`, `engine` are the speed of the planted kernel in the largest bucket."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: str, *, alone: float, steps: float, engine: float) -> None:
        self.now, self.kernel, rng = 0.0, kernel, np.random.default_rng(0)

        def passed(speed: float, rows: int = 100) -> float:
            seconds = 1e-4 * rows / speed * float(np.exp(0.01 * rng.standard_normal()))
            self.now += seconds
            return seconds

        def chosen(program: Any) -> bool:
            return any(program.chosen(i, len(_native.row_buckets()) - 1) == kernel for i in range(len(program.linears())))

        def kernel_seconds(_: NativeKernels, site: object, rows: int, name: str) -> float:
            return passed(alone if (rows, name) == (LARGEST, kernel) else 1.0)

        def step_seconds(_: Steps, program: Any, one: Sequence[Step], *rest: object) -> float:
            return passed(steps if chosen(program) else 1.0, sum(len(step.tokens) for step in one))

        monkeypatch.setattr(NativeKernels, "seconds", kernel_seconds)
        monkeypatch.setattr(Steps, "seconds", step_seconds)
        monkeypatch.setattr(EngineWork, "__call__", lambda work: passed(engine if chosen(work.engine.loaded.program) else 1.0))

    def tune(self, loaded: LoadedModel) -> tuner_module.Tuned:
        return tune(loaded, None, Silent(), TuneOptions(budget=600, seed=2), lambda: self.now)


@pytest.fixture
def several(tiny_model: Path, tmp_path: Path) -> tuple[LoadedModel, str]:
    """A model, and a kernel that can run its linears with many rows and is not the default."""
    isa = next(isa for isa in _native.available_isas() if len(_native.linear_kernels(isa)) > 1)
    loaded = load(tiny_model, quantization="4bit", cache_dir=tmp_path / "cache", threads=1, isa=isa)
    kernels = NativeKernels(loaded)
    return loaded, next(name for site in kernels.index for name in kernels.kernels(site, LARGEST)[1:])


@pytest.mark.parametrize("alone,steps,engine,kept,why", [
    (1.4, 1.2, 1.15, True, "confirmed end to end"),
    (1.4, 1.0, 1.0, False, "no candidate"),
    (1.4, 1.2, 1.0, False, "no gain is sure"),
    (1.4, 1.2, 0.85, False, "slower"),
    (0.7, 0.8, 0.8, False, "no candidate"),
])
def test_what_is_not_confirmed_is_not_kept(
        several: tuple[LoadedModel, str], monkeypatch: pytest.MonkeyPatch, alone: float, steps: float, engine: float, kept: bool, why: str) -> None:
    loaded, kernel = several
    tuned = Planted(monkeypatch, kernel, alone=alone, steps=steps, engine=engine).tune(loaded)
    assert tuned.changed is kept and why in tuned.why
    assert {choice.rows for choice in tuned.policy.kernels} == ({LARGEST} if kept else set())
    assert {choice.kernel for choice in tuned.policy.kernels} == ({kernel} if kept else set())
    assert all(choice.gain.gain == pytest.approx(0.4, abs=0.05) for choice in tuned.policy.kernels)
    assert [a.chosen for a in tuned.answers if a.changed] == [kernel] * len(tuned.policy.kernels)
    assert bool(tuned.policy.confirmed) is kept
    if steps == 1.0:
        assert any("faster alone" in answer.why for answer in tuned.answers)


def test_steps_are_what_a_scheduler_would_plan(loaded: LoadedModel) -> None:
    one = decoding(3, 40)
    assert one.positions.tolist() == [39] * 3 and one.slots.tolist() == [32 * 1 + 7, 32 * 3 + 7, 32 * 5 + 7] and one.tables.shape == (3, 2)
    assert [len(step.tokens) for step in prompt(70, 32)] == [32, 32, 6]
    assert Steps(loaded).seconds(loaded.program, [one]) > 0


def test_a_reference_model_has_nothing_to_choose(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="nothing to choose"):
        fingerprint(load(tiny_model, backend="reference", use_cache=False))


def test_options_that_cannot_be() -> None:
    for wrong in ({"budget": 0}, {"longest_step": -1}, {"allow_kv": ("int3",)}):
        with pytest.raises(UsageError):
            TuneOptions(**wrong)  # type: ignore[arg-type]


def test_a_damaged_policy_leaves_the_defaults(loaded: LoadedModel, tmp_path: Path) -> None:
    path = policy_path(tmp_path, loaded.name, str(loaded.plan))
    save(path, {"format": "octavo policy 1"})
    assert find(path, fingerprint(loaded))[0] is None
