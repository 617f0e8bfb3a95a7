"""Planted kernels that really compute: the slow one is ranked last, the wrong ones are rejected, the fast one is chosen."""

from __future__ import annotations

import time

import numpy as np
import pytest

from octavo.tune.journal import Journal
from octavo.tune.kernels import KernelQuestion, Site
from octavo.tune.race import Clock
from octavo.tune.search import Search

from .conftest import Silent

SITE = Site.of({"n": 512, "k": 384, "weights": "float", "group": 0})
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((512, 384)).astype(np.float32)


PRODUCT = 1e-4  # seconds that a product with the whole weight is taken to last; speed is never timed in a test
products = 0.0  # done so far


def once(x: np.ndarray, width: int = 384) -> np.ndarray:
    global products
    products += width / 384
    return x[:, :width] @ WEIGHT[:, :width].T


def times(count: int):  # type: ignore[no-untyped-def]
    """The product, and `count - 1` products more for nothing."""
    def kernel(x: np.ndarray) -> np.ndarray:
        for _ in range(count):
            y = once(x)
        return y
    return kernel


def off_by_a_term(x: np.ndarray) -> np.ndarray:
    return once(x, 380)


def off_by_a_bit(x: np.ndarray) -> np.ndarray:
    y = once(x)
    y[-1, -1] = np.nextafter(y[-1, -1], np.float32(np.inf))
    return y


def infinite(x: np.ndarray) -> np.ndarray:
    return once(x) * np.float32(np.nan)


class PlantedKernels:
    """A backend of kernels whose merits are known. The default does the product three times."""

    same_bits = True

    def __init__(self) -> None:
        self.all = {"usual": times(3), "slow": times(6), "fast": times(1), "faster, drops a term": off_by_a_term, "faster, drops a bit": off_by_a_bit,
                    "faster, infinite": infinite}
        self.timed: list[str] = []
        self.noise = np.random.default_rng(3)
        self.released = 0

    def kernels(self, site: Site, rows: int) -> list[str]:
        return list(self.all)

    def inputs(self, rows: int) -> np.ndarray:
        return np.random.default_rng(rows).standard_normal((rows, 384)).astype(np.float32)

    def outputs(self, site: Site, rows: int, kernel: str) -> np.ndarray:
        return self.all[kernel](self.inputs(rows))

    def reference(self, site: Site, rows: int) -> tuple[np.ndarray, np.ndarray]:
        columns = np.arange(0, 512, 3)
        return columns, self.inputs(rows).astype(np.float64) @ WEIGHT[columns].T.astype(np.float64)

    def seconds(self, site: Site, rows: int, kernel: str) -> float:
        self.timed.append(kernel)
        x = self.inputs(rows)
        before = products
        self.all[kernel](x)
        return (products - before) * PRODUCT * float(np.exp(self.noise.normal(0, 0.05)))

    def release(self) -> None:
        self.released += 1


def test_planted_kernels() -> None:
    backend = PlantedKernels()
    question = KernelQuestion.make(backend, SITE, 64, 33)
    assert question is not None and question.rows == "33-64" and question.what == "linear 512 x 384, float"
    search = Search(Clock(time.perf_counter, time.perf_counter() + 20), Journal(None, {}), Silent(), seed=1)
    (answer,) = search.ask([question], search.clock)
    assert answer.chosen == "fast" and answer.interval is not None and answer.interval.gain > 0.5
    assert [name for name, _ in answer.ranking] == ["fast", "slow"] and answer.ranking[1][1] < 0
    rejected = dict(answer.rejected)
    assert "off the reference" in rejected["faster, drops a term"]
    assert "other bits" in rejected["faster, drops a bit"] and "1 of" in rejected["faster, drops a bit"]
    assert "not finite" in rejected["faster, infinite"]
    assert not set(rejected) & set(backend.timed) and backend.released


@pytest.mark.parametrize("names", [["usual"], ["usual", "slow"], ["usual", "faster, drops a bit"]])
def test_the_default_stays(names: list[str]) -> None:
    backend = PlantedKernels()
    backend.all = {name: backend.all[name] for name in names}
    question = KernelQuestion.make(backend, SITE, 8, 8)
    if len(names) == 1:
        assert question is None
        return
    assert question is not None
    search = Search(Clock(time.perf_counter, time.perf_counter() + 5), Journal(None, {}), Silent(), seed=1)
    (answer,) = search.ask([question], search.clock)
    assert not answer.changed and names[1] in answer.why
