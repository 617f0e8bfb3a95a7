"""The search on planted candidates: slow, wrong, equal and fast ones are ranked, rejected, kept out and chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.tune.journal import Journal
from octavo.tune.race import Clock, Rules
from octavo.tune.search import Search

from .conftest import Planted, Silent, Timeline

FACTS = {"model": "planted", "cores": 2}


def search(timeline: Timeline, budget: float = 60.0, journal: Journal | None = None, seed: int = 0) -> Search:
    return Search(Clock(timeline, timeline.now + budget), journal or Journal(None, FACTS), Silent(), seed=seed)


@pytest.mark.parametrize("seed", range(10))
def test_planted_candidates(timeline: Timeline, seed: int) -> None:
    question = Planted(timeline, {"slow": 0.6, "wrong": 3.0, "equal": 1.0, "fast": 1.25, "faster": 1.4}, wrong=["wrong"], seed=seed)
    one = search(timeline, seed=seed)
    (answer,) = one.ask([question], one.clock)
    assert answer.chosen == "faster" and answer.changed
    assert answer.interval is not None and answer.interval.low > 0.1 and answer.interval.gain == pytest.approx(0.4, abs=0.1)
    assert [name for name, _ in answer.ranking][:2] == ["faster", "fast"] and answer.ranking[-1][0] == "slow"
    assert answer.rejected == (("wrong", "is wrong"),) and question.timed["wrong"] == 0
    assert question.timed["slow"] < question.timed["faster"]


def test_a_candidate_that_crashes_is_rejected(timeline: Timeline) -> None:
    class Crashing(Planted):
        def check(self, candidate: str) -> str | None:
            raise RuntimeError("no such instruction")

    one = search(timeline)
    (answer,) = one.ask([Crashing(timeline, {"bad": 2.0})], one.clock)
    assert not answer.changed and "no such instruction" in answer.why


def test_nothing_is_chosen_where_nothing_is_gained() -> None:
    """Stages of 20 questions with three candidates each, all equal to the default: at most one stage in twenty may change something."""
    changed = 0
    for seed in range(40):
        timeline = Timeline()
        questions = [Planted(timeline, {"a": 1.0, "b": 1.0, "c": 1.0}, seed=100 * seed + i, name=f"q{i}") for i in range(20)]
        one = search(timeline, 600.0, seed=seed)
        changed += any(answer.changed for answer in one.ask(questions, one.clock))
    assert changed <= 3


def test_small_gains_are_found_and_slower_ones_never() -> None:
    found = 0
    for seed in range(20):
        timeline = Timeline()
        one = search(timeline, seed=seed)
        questions = [Planted(timeline, {"a bit": 1.08}, seed=seed, name="gain"), Planted(timeline, {"worse": 0.98}, seed=seed + 50, name="loss")]
        gain, loss = one.ask(questions, one.clock)
        found += gain.changed
        assert not loss.changed
    assert found >= 12


def test_the_budget_is_kept_and_said(timeline: Timeline) -> None:
    questions = [Planted(timeline, {"fast": 2.0}, base=1.0, name=f"q{i}") for i in range(10)]
    one = search(timeline, 30.0)
    answers = one.ask(questions, one.clock)
    assert timeline.now < 45.0
    assert any("time was up" in answer.why for answer in answers) and not all(answer.changed for answer in answers)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    timeline = Timeline()
    path = tmp_path / "journal.json"

    class Impatient(Planted):
        def seconds(self, candidate: str) -> float:
            if sum(self.timed.values()) > 14:
                raise KeyboardInterrupt
            return super().seconds(candidate)

    done = Planted(timeline, {"fast": 1.3}, name="first")
    with pytest.raises(KeyboardInterrupt):
        one = search(timeline, journal=Journal(path, FACTS))
        one.ask([done, Impatient(timeline, {"fast": 1.3}, name="second")], one.clock)
    kept = Journal(path, FACTS)
    assert "2 questions" in kept.note
    rounds = {key: record.race.rounds for key, record in kept.records.items()}
    assert rounds["first"] >= 6 and rounds["second"] >= 3
    again = [Planted(timeline, {"fast": 1.3}, name="first", seed=1), Planted(timeline, {"fast": 1.3}, name="second", seed=2)]
    one = search(timeline, journal=kept)
    answers = one.ask(again, one.clock)
    assert all(answer.chosen == "fast" for answer in answers)
    assert again[0].timed["fast"] <= 1 + 40 + 1  # the race was not run again
    stale = Journal(path, {**FACTS, "cores": 4})
    assert "cores was 2, is 4" in stale.note and not stale.records
    path.write_text("{")
    assert "cannot be read" in Journal(path, FACTS).note


def test_verifying_tells_gains_from_losses(timeline: Timeline) -> None:
    questions = [Planted(timeline, {"policy": speed}, name=name, seed=i) for i, (name, speed) in enumerate([("up", 1.2), ("same", 1.0), ("down", 0.8)])]
    one = search(timeline)
    up, same, down = one.verify(questions, one.clock, rounds=(8, 16))
    assert (up.gains, up.loses) == (True, False) and (same.gains, same.loses) == (False, False) and (down.gains, down.loses) == (False, True)
    assert same.floor >= Rules().least_gain and {v.interval.pairs for v in (up, same, down)} == {16}


def test_a_confirmation_that_takes_too_long_is_cut(timeline: Timeline) -> None:
    question = Planted(timeline, {"policy": 2.0}, base=3.0)
    one = search(timeline, 10.0)
    (found,) = one.verify([question], one.clock)
    assert timeline.now < 25.0 and found.interval.pairs < 5 and not found.gains and not found.loses
