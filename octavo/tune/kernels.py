"""Kernel questions: which kernel runs linears of one shape for steps of so many rows. What a device must offer is KernelBackend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

TOLERANCE = 5e-3  # of the norm: rounding of activations may fall differently in float64; a wrong term is far above


@dataclass(frozen=True)
class Site:
    """Linears of one kind in a model: n, k, how their weights are stored, in groups of how many, with which activations."""

    facts: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Site:
        return Site(tuple(sorted(facts.items())))

    def __getitem__(self, name: str) -> Any:
        return dict(self.facts)[name]

    @property
    def what(self) -> str:
        """`linear 1536 x 576, codes4 / 64`"""
        facts = dict(self.facts)
        group = facts.get("group", 0)
        return f"linear {facts['n']} x {facts['k']}, {facts.get('weights', '')}" + (f" / {group}" if 0 < group < facts["k"] else "")


class KernelBackend(Protocol):
    """The kernels of one device, on the weights of one model. The first kernel named is the one that runs when nothing is chosen. same_bits: all of them give
    the same bits; else the first rows of `outputs` are the same numbers for any number of rows, and must come out the same."""

    same_bits: bool

    def kernels(self, site: Site, rows: int) -> Sequence[str]: ...

    def outputs(self, site: Site, rows: int, kernel: str) -> np.ndarray:
        """float32 [rows, n] of one weight of the site for fixed inputs."""

    def reference(self, site: Site, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(which of the n outputs, float64 [rows, those]): what `outputs` should be, by the reference kernel."""

    def seconds(self, site: Site, rows: int, kernel: str) -> float:
        """One pass over the site's weights with cold weights and warm code, as in a step."""

    def release(self) -> None: ...


class ModelKernels(KernelBackend, Protocol):
    """buckets: most rows that each choice is for; importance: of them, in case the time does not last; bytes: of all weights of a site; selected: sites that
    only rows with logits reach."""

    buckets: Sequence[int]
    importance: Sequence[int]
    bytes: dict[Site, int]
    selected: set[Site]


@dataclass(frozen=True)
class KernelQuestion:
    """`bucket` is the largest number of rows that the answer is for, `least` the smallest."""

    backend: KernelBackend
    site: Site
    bucket: int
    least: int
    default: str
    candidates: tuple[str, ...]

    @staticmethod
    def make(backend: KernelBackend, site: Site, bucket: int, least: int) -> KernelQuestion | None:
        """None when there is nothing to choose."""
        default, *others = backend.kernels(site, bucket)
        return KernelQuestion(backend, site, bucket, least, default, tuple(others)) if others else None

    @property
    def key(self) -> str:
        return f"kernel of {dict(self.site.facts)} up to {self.bucket} rows, default {self.default}"

    @property
    def what(self) -> str:
        return self.site.what

    @property
    def rows(self) -> str:
        return str(self.bucket) if self.least == self.bucket else f"{self.least}-{self.bucket}"

    def check(self, candidate: str) -> str | None:
        """Against the float64 reference; then bit for bit against the default where all kernels give the same bits, since results must not depend on what was
        measured; else against itself with fewer rows, since a row's must not depend on the others."""
        alone: np.ndarray | None = None
        for rows in sorted({self.least, self.bucket}):
            found = self.backend.outputs(self.site, rows, candidate)
            columns, wanted = self.backend.reference(self.site, rows)
            if not np.isfinite(found).all():
                return f"gives numbers that are not finite ({rows} rows)"
            error = float(np.linalg.norm(found[:, columns] - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
            if error > TOLERANCE:
                return f"is wrong: off the reference by {error:.2g} of its size ({rows} rows)"
            if self.backend.same_bits:
                usual, of = self.backend.outputs(self.site, rows, self.default), self.default
            elif alone is None:
                alone = found
                continue
            else:
                found, usual, of = found[: len(alone)], alone, f"with {len(alone)}"
            if not np.array_equal(found.view(np.uint32), usual.view(np.uint32)):
                return f"gives other bits than {of} in {np.count_nonzero(found != usual)} of {found.size} numbers ({rows} rows)"
        return None

    def seconds(self, candidate: str) -> float:
        return self.backend.seconds(self.site, self.bucket, candidate)

    def close(self) -> None:
        self.backend.release()
