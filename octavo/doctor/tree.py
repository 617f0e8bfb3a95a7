"""The decision tree: questions in their order, each answered by a measurement; those that earlier answers have settled are not asked.

A cause is a file in `causes/TOPIC/` that ends in `CAUSE`. A cause whose disorder explains the complaint on its own names the questions that then mean
nothing: those say so themselves, in `unless`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OctavoError, UsageError
from ..registry import discover
from .findings import Asked, Disorder, Finding, Report

if TYPE_CHECKING:
    from .case import Case


@dataclass(frozen=True)
class Answer:
    """In words, with its numbers; and what is wrong, if anything is."""

    text: str
    findings: tuple[Finding, ...] = ()


class NotAskedError(Exception):
    """Raised by a look that lacks what it needs: the reason, as an answer."""


@dataclass(frozen=True)
class Cause:
    """place      in the order of the questions
    question   in words
    look       measures; raises NotAskedError or an OctavoError where it cannot, which is then the answer
    disorders  what it may find
    unless     codes of disorders with which the question means nothing
    """

    place: int
    question: str
    look: Callable[[Case], Answer]
    disorders: tuple[Disorder, ...]
    unless: tuple[str, ...] = ()


def causes(topic: str) -> list[Cause]:
    """In the order in which they are asked."""
    found: list[Cause] = list(discover(f"{__package__}.causes.{topic}", "CAUSE").values())
    return sorted(found, key=lambda cause: cause.place)


def walk(topic: str, case: Case) -> Report:
    """Ask the questions. What cannot be measured is said and passed over; that the model cannot be loaded ends the walk, and is raised where nothing was
    found before. Raises UsageError for what the user named."""
    report = Report(Path(case.model), topic, {})
    for cause in causes(topic):
        known = {finding.disorder.code for finding in report.findings}
        if settled := [code for code in cause.unless if code in known]:
            report.asked.append(Asked(cause.question, f"not asked: {settled[0]} comes first", False))
            continue
        try:
            answer = cause.look(case)
        except NotAskedError as reason:
            report.asked.append(Asked(cause.question, f"not measured: {reason}", False))
            continue
        except UsageError:
            raise  # a file or a name that the user gave
        except OctavoError as error:
            if error is case.fatal:  # no later question has an answer; what was found before may say why
                if not report.findings:
                    raise
                report.asked.append(Asked(cause.question, f"not measured: {error}", False))
                break
            report.asked.append(Asked(cause.question, f"not measured: {error}", False))
            continue
        report.asked.append(Asked(cause.question, answer.text))
        report.add(list(answer.findings))
    report.facts.update(case.facts)
    return report


def disorders(topic: str) -> Callable[[], list[Disorder]]:
    return lambda: [disorder for cause in causes(topic) for disorder in cause.disorders]
