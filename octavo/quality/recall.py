"""Copy and needle tasks: does the model still find, thousands of tokens back, what it was told? Scored exactly.

Both are answered in one forward a sequence: the answer is put after the question, and a token counts when it is the model's first choice given all
before it. All tokens of an answer count exactly when greedy generation would have written that answer.

copy     a passage of random words comes twice, with other text between them; scored is the second copy after its first eighth, token by token
needle   "The secret number of NAME is 1234567." stands somewhere in a text; at the end the same sentence is begun; scored is the whole number
         (the needle in a haystack: G. Kamradt, 2023; the passkey task: Mohtashami and Jaggi, arXiv:2305.16300)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UsageError
from ..text.beginning import beginning
from .intervals import Estimate
from .perplexity import Model, Windows, logits_of
from .shares import share, share_difference

PLACES = ("Aldmoor", "Brinfell", "Corvath", "Dunmere", "Eskdale", "Farrow", "Glenholt", "Harwick")
DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Recall:
    """right: 1.0 where the model's first choice is right, a row a trial; `exact` counts whole answers, `tokens` single ones."""

    kind: str
    length: int
    right: list[np.ndarray]

    @property
    def answers(self) -> np.ndarray:
        """1.0 for each answer that is right from beginning to end: [trials]."""
        return np.array([float(row.all()) for row in self.right])

    @property
    def trial_of(self) -> np.ndarray:
        """The trial of each token."""
        return np.repeat(np.arange(len(self.right)), [len(row) for row in self.right])

    @property
    def exact(self) -> Estimate:
        """Share of answers that are right from beginning to end."""
        return share(self.answers, 1)

    @property
    def tokens(self) -> Estimate:
        """Share of tokens that are right."""
        return share(np.concatenate(self.right), self.trial_of)

    def to_json(self) -> dict[str, object]:
        return {"task": self.kind, "length": self.length, "trials": len(self.right), "exact": self.exact.to_json(), "tokens": self.tokens.to_json()}


def exact_difference(model: Recall, original: Recall) -> Estimate:
    """Share of right answers of the model minus the original's, paired: both were asked the same."""
    return share_difference(model.answers - original.answers, 1)


def tokens_difference(model: Recall, original: Recall) -> Estimate:
    """The same of tokens."""
    return share_difference(np.concatenate(model.right) - np.concatenate(original.right), model.trial_of)


def copy_task(model: Model, text: str, length: int, *, trials: int = 4, words: int = 64, seed: int = 0) -> Recall:
    """`text` gives the words and what stands between the copies; `length` is the whole sequence in tokens. Raises UsageError for too little of either."""
    _fits(model, length)
    draw = np.random.default_rng(seed)
    known = sorted(set(re.findall(r"[A-Za-z]{3,9}", text)))
    filler = _encode(model, text)
    right = []
    for _ in range(trials):
        passage = _encode(model, " " + " ".join(known[i] for i in draw.integers(0, len(known), words)) + ".")[: length // 4] if known else []
        between = length - len(beginning(model.text)) - 2 * len(passage)
        if not known or between < 0 or len(filler) < between:
            raise UsageError(f"the text holds no words, or less than {length} tokens", where="copy task")
        start = int(draw.integers(0, len(filler) - between + 1))
        tokens = [*beginning(model.text), *passage, *filler[start : start + between], *passage]
        right.append(_first_choices(model, tokens, len(passage) - len(passage) // 8))
    return Recall("copy", length, right)


def needle_task(model: Model, text: str, length: int, *, depths: Sequence[float] = DEPTHS, seed: int = 0) -> Recall:
    """One needle at each of `depths` (0: at the beginning, 1: at the end) of `length` tokens of `text`. Raises UsageError for too little text."""
    _fits(model, length)
    draw = np.random.default_rng(seed)
    hay = _encode(model, text)
    right = []
    for number, depth in enumerate(depths):
        place, secret = PLACES[number % len(PLACES)], str(draw.integers(1_000_000, 10_000_000))
        needle = _encode(model, f"\n\nThe secret number of {place} is {secret}. Remember it.\n\n")
        asked = f"\n\nThe secret number of {place} is"
        question, whole = _encode(model, asked), _encode(model, f"{asked} {secret}")
        answer = whole[len(question) :]  # without a tokenizer's word boundary at the join, in which case the question ends differently
        room = length - len(beginning(model.text)) - len(needle) - len(whole)
        if whole[: len(question)] != question or room < 0 or len(hay) < room:
            raise UsageError(f"{length} tokens do not hold the needle and its question, or the text is shorter", where="needle task")
        start = int(draw.integers(0, len(hay) - room + 1))
        cut = start + int(depth * room)
        tokens = [*beginning(model.text), *hay[start:cut], *needle, *hay[cut : start + room], *whole]
        right.append(_first_choices(model, tokens, len(answer)))
    return Recall("needle", length, right)


def _first_choices(model: Model, tokens: list[int], scored: int) -> np.ndarray:
    """1.0 where the largest logit is that of the next token, for the last `scored` tokens."""
    windows = Windows(np.array([tokens], np.int32), np.array([scored]))
    return np.concatenate([(logits.argmax(axis=1) == targets).astype(np.float64) for logits, targets in logits_of(model, windows)])


def _encode(model: Model, text: str) -> list[int]:
    return model.text.encode(text, special=False)


def _fits(model: Model, length: int) -> None:
    if not 2 <= length <= model.max_model_len:
        raise UsageError(f"{length} tokens", where="length", remedy=f"this model takes 2 to {model.max_model_len}")
