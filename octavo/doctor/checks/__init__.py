"""Checks of a checkpoint: each file looks for related disorders and ends in `CHECK`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..findings import Disorder, Finding
from ..patient import Patient


@dataclass(frozen=True)
class Check:
    """`run(patient)` gives findings of these disorders."""

    run: Callable[[Patient], Iterable[Finding]]
    disorders: tuple[Disorder, ...]
