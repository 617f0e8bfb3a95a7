"""Search: asks questions in stages under a budget. A stage races all its questions, then confirms the winners on fresh samples.

A candidate is chosen when it does the work right, its gain on samples that played no part in finding it is significant (the winners of a stage
are judged together, see paired.discoveries), and is larger than what the default gains over itself.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .journal import Journal, Record
from .paired import LEAST, Interval, discoveries
from .question import Answer, Question
from .race import AGAIN, Clock, Rules, Samples, play, race, rounds_to_confirm, warm_up

GRACE = 0.1  # of the budget, to get enough rounds of a confirmation
TIME_UP = "not measured: the time was up"


class Watch(Protocol):
    """Who wants to see the search go on."""

    def asking(self, question: Question, stage: str, number: int, of: int) -> None: ...

    def played(self, question: Question, samples: Samples) -> None: ...


@dataclass(frozen=True)
class Verdict:
    """What a verification found: the candidate surely gains, surely loses, or neither. floor: the noise, as a log-ratio."""

    what: str
    interval: Interval
    floor: float
    gains: bool
    loses: bool


class Search:
    def __init__(self, clock: Clock, journal: Journal, watch: Watch, rules: Rules | None = None, seed: int | None = None) -> None:
        self.clock, self.journal, self.watch, self.rules = clock, journal, watch, rules or Rules()
        self.rng = random.Random(seed)
        self.grace = GRACE * clock.left

    def ask(self, questions: Sequence[Question], until: Clock, stage: str = "") -> list[Answer]:
        """An answer to each question, in their order. Takes until `until` at most, of which three quarters for the races. KeyboardInterrupt
        passes through; what was measured is in the journal then."""
        records = [self.journal.record(q.key, list(q.candidates)) for q in questions]
        racing = until.part(0.75 * until.left)
        try:
            for number, (question, record) in enumerate(zip(questions, records, strict=True)):
                self.watch.asking(question, stage, number, len(questions))
                self._race(question, record, racing.part(2 * racing.left / (len(questions) - number)))
                question.close()
            winners = [(q, r) for q, r in zip(questions, records, strict=True) if _find_leader(r, self.rules)]
            for number, (question, record) in enumerate(winners):
                self.watch.asking(question, f"{stage}, confirming", number, len(winners))
                self._confirm(question, record, until.part(2 * until.left / (len(winners) - number)))
                question.close()
        finally:
            self.journal.write()
        sure = dict(zip((id(r) for _, r in winners), discoveries([r.confirm.interval(r.leader).chance for _, r in winners], self.rules.false_changes),
                        strict=True))
        return [self._answer(q, r, sure.get(id(r), False)) for q, r in zip(questions, records, strict=True)]

    def verify(self, questions: Sequence[Question], until: Clock, stage: str = "", rounds: tuple[int, int] = (6, 16)) -> list[Verdict]:
        """Whether the one candidate of each question gains or loses. The questions take turns, so that all have the same number of rounds: at most
        `rounds[1]`, and `rounds[0]` even if that takes a little longer than `until`."""
        records = [self.journal.record(q.key, list(q.candidates)) for q in questions]
        done = min((r.confirm.rounds for r in records), default=0)
        try:
            for question in questions if done < rounds[1] else ():
                warm_up(question, question.candidates)
            while done < rounds[1] and (until.left > 0 or (done < rounds[0] and until.left > -self.grace)):
                for number, (question, record) in enumerate(zip(questions, records, strict=True)):
                    self.watch.asking(question, stage, number, len(questions))
                    if record.confirm.rounds <= done:
                        play(question, question.candidates, record.confirm, self.rng)
                        self.watch.played(question, record.confirm)
                done += 1
        finally:
            self.journal.write()
            for question in questions:
                question.close()
        found = [r.confirm.interval(r.arms[0]) for r in records]
        floors = [self._floor(r.confirm) for r in records]
        up = discoveries([one.chance for one in found], self.rules.false_changes)
        down = discoveries([1 - one.chance if one.pairs >= LEAST else 1.0 for one in found], self.rules.false_changes)
        return [Verdict(q.what, one, floor, gains=gain and one.mean > floor, loses=loss and -one.mean > floor)
                for q, one, floor, gain, loss in zip(questions, found, floors, up, down, strict=True)]

    def _race(self, question: Question, record: Record, clock: Clock) -> None:
        if clock.left <= 0 and not record.race.rounds:
            return
        if not record.checked:
            record.rejected = {name: why for name in record.arms if (why := self._check(question, name)) is not None}
            record.checked = True
        arms = [name for name in record.arms if name not in record.rejected]
        if arms and clock.left > 0:
            if record.race.rounds < self.rules.race[1]:
                warm_up(question, arms)
            race(question, arms, record.race, self.rules, clock, self.rng, lambda samples: self.watch.played(question, samples))
        self.journal.write()

    def _check(self, question: Question, candidate: str) -> str | None:
        try:
            return question.check(candidate)
        except Exception as error:  # whatever a candidate raises, it is the candidate that is out, not the search
            return f"fails: {type(error).__name__}: {error}"

    def _confirm(self, question: Question, record: Record, clock: Clock) -> None:
        wanted = rounds_to_confirm(record.race.interval(record.leader), self.rules)
        if record.confirm.rounds < wanted and clock.left > 0:
            warm_up(question, [record.leader])
        while record.confirm.rounds < wanted and clock.left > 0:
            play(question, [record.leader], record.confirm, self.rng)
            self.watch.played(question, record.confirm)
        self.journal.write()

    def _floor(self, samples: Samples) -> float:
        own = samples.interval(AGAIN)
        return max(self.rules.least_gain, own.furthest if own.pairs >= LEAST else 0.0)

    def _answer(self, question: Question, record: Record, sure: bool) -> Answer:
        rejected = tuple(record.rejected.items())
        ranking = sorted(((name, record.race.interval(name)) for name in record.arms if name in record.race.ratios), key=lambda pair: -pair[1].mean)
        shown = tuple((name, one.mean) for name, one in ranking)

        def kept(why: str, best: str = "", seen: Interval | None = None) -> Answer:
            return Answer(question.what, question.rows, question.default, question.default, why, best, seen, rejected, shown)

        if rejected and len(rejected) == len(record.arms):
            return kept(f"rejected: {'; '.join(f'{name} {why}' for name, why in rejected)}")
        if not ranking or record.race.rounds < LEAST:
            return kept(TIME_UP)
        best, found = ranking[0]
        if not record.leader:
            if found.high < 0:
                return kept(f"{best} is slower", best, found)
            return kept(f"{best} gains nothing that is sure", best, found)
        best = record.leader
        fresh = record.confirm.interval(best)
        if fresh.pairs < LEAST:
            return kept(f"{best} looked faster; not confirmed: the time was up", best, record.race.interval(best))
        floor = self._floor(record.confirm)
        if not sure or fresh.low <= 0:
            return kept(f"{best} looked faster; fresh samples did not confirm it", best, fresh)
        if fresh.mean <= floor:
            return kept(f"{best}: within the noise, the default differs from itself by up to {100 * floor:.1f}%", best, fresh)
        return Answer(question.what, question.rows, question.default, best, "faster, confirmed on fresh samples", best, fresh, rejected, shown)


def _find_leader(record: Record, rules: Rules) -> bool:
    """The fastest arm of the race, if it is likely to gain, becomes the leader."""
    intervals = {name: record.race.interval(name) for name in record.arms if name in record.race.ratios}
    able = {name: one for name, one in intervals.items() if one.pairs >= LEAST and one.mean > rules.least_gain and one.low > 0}
    leader = max(able, key=lambda name: able[name].mean, default="")
    if leader != record.leader:
        record.leader, record.confirm = leader, Samples()
    return bool(leader)
