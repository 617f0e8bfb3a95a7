"""The window loop with models whose perplexity is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from octavo.cache import PAGE, KVPool, Step
from octavo.errors import UsageError
from octavo.quality import logits_of, perplexity, windows_of
from octavo.schemes import TensorSpec

VOCAB = 32


class Letters:
    """A tokenizer of one token a character; `begin` comes before every text."""

    def __init__(self, begin: tuple[int, ...] = ()) -> None:
        self.begin = begin

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [*(self.begin if special else ()), *(ord(c) % VOCAB for c in text)]


class Cyclic:
    """Says that token t is followed by t + 1, with logit `sure`; keeps what it was asked, to check the steps."""

    max_model_len = 4096

    def __init__(self, sure: float = 0.0, begin: tuple[int, ...] = ()) -> None:
        self.sure, self.text, self.steps = sure, Letters(begin), list[Step]()

    def new_pool(self, pages: int) -> KVPool:
        return KVPool(pages, [1], [4], TensorSpec("fp32"))

    def forward(self, step: Step, pool: KVPool) -> np.ndarray:
        self.steps.append(step)
        logits = np.zeros((len(step.select), VOCAB), np.float32)
        logits[np.arange(len(step.select)), (step.tokens[step.select] + 1) % VOCAB] = self.sure
        return logits


ALPHABET = "".join(chr(96 + i % VOCAB) for i in range(4000))


def test_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    result = perplexity(Cyclic(), ALPHABET, context=1000)
    assert result.value == pytest.approx(VOCAB)
    assert (result.windows, result.tokens) == (4, 4 * 999)
    assert result.low == pytest.approx(VOCAB) and result.high == pytest.approx(VOCAB)


def test_known_probability() -> None:
    p = math.exp(3) / (math.exp(3) + VOCAB - 1)
    assert perplexity(Cyclic(3.0), ALPHABET, context=600, windows=3).value == pytest.approx(1 / p)


def test_steps_are_what_the_contract_says() -> None:
    model = Cyclic()
    list(logits_of(model, windows_of(model, ALPHABET, context=600, windows=1)))
    rows = 0
    for step in model.steps:
        n = len(step.tokens)
        assert step.starts.tolist() == [0, n] and step.lengths.tolist() == [rows + n]
        assert np.array_equal(step.positions, np.arange(rows, rows + n)) and np.array_equal(step.slots, step.positions)
        assert step.tables.shape[1] * PAGE >= rows + n
        assert all(a.dtype == np.int32 and a.flags.c_contiguous for a in vars(step).values())
        rows += n
    assert rows == 599, "the last token has nothing after it to predict"


def test_stride_scores_every_token_once() -> None:
    model = Cyclic()
    cuts = windows_of(model, ALPHABET, context=600, stride=200)
    assert cuts.scored.tolist() == [599] + [200] * (len(cuts.scored) - 1)
    seen = np.concatenate([targets for _, targets in logits_of(model, cuts)])
    assert np.array_equal(seen, model.text.encode(ALPHABET)[1 : 1 + len(seen)])


def test_beginning_of_text_starts_every_window_and_is_not_scored() -> None:
    model = Cyclic(begin=(31,))
    cuts = windows_of(model, ALPHABET, context=500)
    assert (cuts.tokens[:, 0] == 31).all() and (cuts.scored == 499).all()
    seen = np.concatenate([targets for _, targets in logits_of(model, cuts)])
    assert np.array_equal(seen, Letters().encode(ALPHABET)[: len(seen)])


def test_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="fewer than one window"):
        perplexity(Cyclic(), "short", context=100)
    with pytest.raises(UsageError, match="context: 5000 tokens"):
        perplexity(Cyclic(), ALPHABET, context=5000)
    with pytest.raises(UsageError, match="stride"):
        perplexity(Cyclic(), ALPHABET, context=100, stride=0)
