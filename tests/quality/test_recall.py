"""Copy and needle tasks with a model that remembers perfectly, one that remembers a little, and one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from test_perplexity import Cyclic, Letters

from octavo.cache import KVPool, Step
from octavo.errors import UsageError
from octavo.quality import copy_task, needle_task

TEXT = "The quick brown fox jumps over the lazy dogs while seven wizards watch from afar. " * 60


class Plain(Letters):
    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(c) % 128 for c in text]


class Remembers(Cyclic):
    """Says what followed the last `order` tokens the last time they occurred, if that was at most `reach` tokens ago."""

    def __init__(self, reach: int, order: int = 16) -> None:
        super().__init__()
        self.text, self.reach, self.order, self.seen = Plain(), reach, order, list[int]()

    def forward(self, step: Step, pool: KVPool) -> np.ndarray:
        self.seen[int(step.positions[0]) :] = step.tokens.tolist()
        logits = np.zeros((len(step.select), 128), np.float32)
        for row, place in enumerate(step.positions[step.select].tolist()):
            key = self.seen[place + 1 - self.order : place + 1]
            for end in range(place - 1, max(place - self.reach, self.order) - 1, -1):
                if self.seen[end + 1 - self.order : end + 1] == key:
                    logits[row, self.seen[end + 1]] = 1.0
                    break
        return logits


def test_a_good_memory_finds_everything() -> None:
    assert copy_task(Remembers(2000), TEXT, 600, trials=2).exact.value == 1.0
    found = needle_task(Remembers(2000), TEXT, 900, depths=(0.1, 0.5, 0.9)).to_json()
    assert found["exact"]["value"] == found["tokens"]["value"] == 1.0 and (found["trials"], found["length"]) == (3, 900)  # type: ignore[index]


def test_a_short_memory_finds_only_what_is_near() -> None:
    assert copy_task(Remembers(100), TEXT, 600, trials=2).exact.value == 0.0
    right = needle_task(Remembers(300), TEXT, 900, depths=(0.1, 0.9)).right
    assert not right[0].all() and right[1].all()


def test_no_memory_finds_nothing() -> None:
    assert needle_task(Remembers(0), TEXT, 900).exact.value == 0.0


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UsageError, match="2 to 4096"):
        copy_task(Remembers(0), TEXT, 5000)
    with pytest.raises(UsageError, match="less than 4000"):
        copy_task(Remembers(0), "Too short.", 4000)
    with pytest.raises(UsageError, match="do not hold the needle"):
        needle_task(Remembers(0), TEXT, 60)
