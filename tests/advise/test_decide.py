"""The choice is the best there is: against a search through everything, over goals, limits, users and random measurements."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import product

import pytest

from octavo.advise import GOALS, Candidate, Goal, Limits, Load, Outcome, Step, decide, front, outcome
from octavo.advise.decide import EDGE_PER_TOKEN, NEAR, USUAL_KL, effective, objective
from octavo.errors import UsageError

from .synthetic import candidate, usual

WITHIN = 0.05  # of the best is right


def figure(goal: Goal, one: Outcome) -> float:
    """What the goal wants small, said a second time."""
    if goal == "cost":
        return 1e6 / one.tokens_per_s
    return {"latency": one.p95, "memory": one.memory, "edge": one.memory, "quality": one.kl}[goal]


def keeps(one: Outcome, goal: Goal, limits: Limits) -> bool:
    pairs = [(one.kl, limits.max_kl if limits.max_kl is not None else USUAL_KL), (one.p95, limits.p95), (one.memory, limits.memory),
             (one.per_token, limits.per_token if limits.per_token is not None or goal != "edge" else EDGE_PER_TOKEN)]
    return one.candidate.runs and all(limit is None or value <= limit for value, limit in pairs)


def check(candidates: list[Candidate], load: Load, goal: Goal, limits: Limits) -> str | None:
    """The choice's name; it keeps all limits and is within 5% of the best of all that do."""
    decision = decide(candidates, load, goal, limits)
    possible = [one for one in (outcome(c, load) for c in candidates) if keeps(one, goal, limits)]
    if not possible:
        assert decision.choice is None
        assert (decision.nearest is None) == (not any(c.runs for c in candidates))
        return None
    assert decision.choice is not None and keeps(decision.choice, goal, limits)
    assert figure(goal, decision.choice) <= min(figure(goal, one) for one in possible) * (1 + WITHIN)
    assert len(decision.reasons) >= 2 and len(decision.verdicts) == len(candidates)
    assert all(v.why for v in decision.verdicts)
    return decision.choice.name


@pytest.mark.parametrize(("goal", "limits", "users", "right"), [
    ("latency", {}, 1, "4bit"),
    ("memory", {}, 20, "W4g64A8g64C8"),
    ("cost", {}, 16, "8bit"),
    ("edge", {}, 1, "4bit"),  # an 8-bit cache would save 1% of the memory for one user, and lose more
    ("latency", {"max_kl": 0.02}, 1, "8bit"),
    ("quality", {"p95": 1.5, "memory": 4e9, "max_kl": 0.02}, 8, "8bit"),
])
def test_six_settings(goal: Goal, limits: dict[str, float], users: int, right: str) -> None:
    assert check(usual(), Load(users, 128, 64), goal, Limits(**limits)) == right


def test_the_limits_of_the_manual() -> None:
    """--p95 100ms --memory 4GB --max-kl 0.02 --users 20: here nothing can; that is said, with what comes nearest and what it breaks."""
    decision = decide(usual(), Load(20), None, Limits(0.1, None, 4e9, 0.02))
    assert decision.goal == "quality" and decision.choice is None and decision.nearest is not None
    assert "nothing keeps all limits" in decision.reasons[0] and "100 ms is allowed" in decision.reasons[0] and decision.nearest.name in decision.reasons[0]
    assert "times as much)" in decision.reasons[0]
    assert decision.reasons[1].startswith("no candidate keeps the limit of p95 of an answer: the least is ") and len(decision.reasons) == 2
    assert [change for change in decision.changes if change.startswith("p95 of an answer of")]
    apart = decide(usual(), Load(), None, Limits(memory=120e6, max_kl=0.001))  # 4 bits are small enough, 16 bits lose little enough
    assert apart.choice is None and apart.reasons[1] == "each limit is kept by some candidate, but no candidate keeps them all"


def test_everything_against_a_search() -> None:
    for goal, p95, memory, kl, users in product(GOALS, (None, 0.5, 2.0, 10.0), (None, 110e6, 160e6), (None, 0.003, 0.04), (1, 16, 100)):
        check(usual(), Load(users, 64, 32), goal, Limits(p95, None, memory, kl))


def test_random_measurements_against_a_search() -> None:
    dice = random.Random(7)
    for _ in range(600):
        found = [candidate(f"c{i}", dice.choice((2, 3, 4, 8, 16)), dice.choice((0.0, dice.expovariate(20), math.nan)), rate=10 ** dice.uniform(10, 12),
                           bandwidth=10 ** dice.uniform(9, 11), kv=dice.randrange(1, 20_000), deviation=dice.expovariate(1000), runs=dice.random() > 0.1)
                 for i in range(dice.randrange(1, 7))]

        def limit(low: float, high: float) -> float | None:
            return None if dice.random() < 0.5 else 10 ** dice.uniform(low, high)

        check(found, Load(dice.choice((1, 2, 5, 16, 40)), dice.randrange(1, 300), dice.randrange(1, 100)), dice.choice(GOALS),
              Limits(limit(-2, 2), limit(-3, 0), limit(7, 9), limit(-3, 0)))


def test_of_equals_the_one_that_loses_least() -> None:
    near = [candidate("rough", 4, 0.08, bandwidth=20e9), candidate("fine", 4, 0.01, bandwidth=20e9 / (1 + NEAR / 2))]
    decision = decide(near, Load(1, 1, 64), "latency", Limits())
    assert decision.choice is not None and decision.choice.name == "fine" and "too near to tell" in decision.reasons[1]
    apart = [near[0], candidate("fine", 4, 0.01, bandwidth=20e9 / 1.2)]
    decision = decide(apart, Load(1, 1, 64), "latency", Limits())
    assert decision.choice is not None and decision.choice.name == "rough"


def test_what_would_change_it_is_true() -> None:
    """Every change that is named is tried: it leads where it says."""
    load, limits = Load(1, 16, 64), Limits(max_kl=0.02)
    decision = decide(usual(), load, "latency", limits)
    assert decision.choice is not None and decision.choice.name == "8bit"
    told = dict(change.split(": ") for change in decision.changes)
    (text, name), = [(text, name) for text, name in told.items() if text.startswith("loss (KL) of ")]
    allowed = decide(usual(), load, "latency", replace(limits, max_kl=float(text.split()[3]))).choice
    assert allowed is not None and allowed.name == name != "8bit"
    assert told["loss (KL) below 0.002 nats per token wanted"] == "16bit"
    for goal in GOALS:
        assert told.get(f"--goal {goal}", "8bit") == decide(usual(), load, goal, limits).choice.name  # type: ignore[union-attr]
    for text, name in told.items():
        if text.split()[1] in ("user", "users"):
            other = decide(usual(), replace(load, users=int(text.split()[0])), "latency", limits).choice
            assert other is not None and other.name == name


def test_what_is_meant_where_nothing_is_said() -> None:
    assert effective(None, Limits()) == ("latency", Limits(max_kl=USUAL_KL))
    assert effective(None, Limits(max_kl=0.5)) == ("latency", Limits(max_kl=0.5))
    assert effective(None, Limits(p95=1.0))[0] == "quality" and effective(None, Limits(memory=1e9))[0] == "quality"
    assert effective("edge", Limits())[1].per_token == EDGE_PER_TOKEN and effective("edge", Limits(per_token=1.0))[1].per_token == 1.0


def test_a_loss_that_is_not_known_keeps_no_limit() -> None:
    unknown = candidate("4bit", 4, math.nan)
    decision = decide([unknown], Load(), "latency", Limits())
    assert decision.choice is None and decision.nearest is not None and "not known" in decision.verdicts[0].why
    assert decide([unknown, candidate("16bit", 16, 0.0)], Load(), "latency", Limits()).choice.name == "16bit"  # type: ignore[union-attr]


def test_what_does_not_run_is_never_taken() -> None:
    decision = decide([candidate("16bit", 16, 0.0, runs=False), candidate("8bit", 8, 0.01)], Load(), "quality", Limits())
    assert decision.choice is not None and decision.choice.name == "8bit" and "does not run here: no memory" in decision.verdicts[0].why
    decision = decide([candidate("16bit", 16, 0.0, runs=False)], Load(), "quality", Limits())
    assert decision.choice is None and decision.nearest is None and decision.reasons == ("no candidate runs here",)
    with pytest.raises(UsageError, match="no candidate"):
        decide([], Load())


def test_an_interval_over_the_limit_is_told() -> None:
    decision = decide([candidate("4bit", 4, 0.09, kl_high=0.12)], Load(), "memory", Limits())
    assert any("reaches 0.12" in reason for reason in decision.reasons)


def test_a_disturbed_measurement_is_told() -> None:
    def told(deviation: float) -> bool:
        found = decide([candidate("4bit", 4, 0.0), candidate("8bit", 8, 0.0, deviation=deviation)], Load(), "latency", Limits())
        return any("other work" in reason and "8bit" in reason and "4bit" not in reason for reason in found.reasons)

    assert told(0.01) and not told(0.0005)


def test_an_outcome_by_hand() -> None:
    one = Candidate("x", "W8", 0.0, 1000, 10, Step(100, 2.0, 0.3), (Step(1, 0.1, 0.01), Step(4, 0.4, 0.02)), fixed_bytes=500)
    found = outcome(one, Load(4, 50, 10), cost_per_hour=3.6)
    assert found.tokens_per_s == pytest.approx(4 * 10 / (4 * 1.0 + 10 * 0.4))
    assert found.p95 == pytest.approx(8.0 + 1.6449 * math.sqrt(4 * 0.3**2 / 2 + 10 * 0.02**2))
    assert (found.memory, found.per_token) == (1500 + 10 * 4 * 60, pytest.approx(0.8))
    assert found.cost == pytest.approx(0.001 / 5 * 1e6) and not found.beyond
    assert outcome(one, Load(2, 50, 10)).per_token == pytest.approx((2 * 1.0 + 10 * 0.2) / 10)
    assert one.step(8) == (pytest.approx(0.8), 0.02, True)


def test_the_front() -> None:
    outcomes = [outcome(one, Load(1)) for one in usual()]
    beaten = {one.name for one in outcomes for other in outcomes
              if other is not one and other.p95 <= one.p95 and other.memory <= one.memory and other.kl <= one.kl}
    assert front(outcomes) == {one.name for one in outcomes} - beaten
    assert "nf4" in front(outcomes)  # slower than 4bit, and loses less
    slow = outcome(candidate("slow", 16.5, 0.0, rate=100e9), Load(1))
    assert "slow" not in front([*outcomes, slow])
    assert "nf4" not in front(outcomes, ("p95", "memory")) and "wint2" in front(outcomes, ("memory", "kl"))
    assert objective("cost", slow) == 1 / slow.tokens_per_s
