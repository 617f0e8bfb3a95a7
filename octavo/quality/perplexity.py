"""Perplexity of a text, window by window, as it is measured on WikiText-2.

The text is tokenized once, as a whole and without special tokens, and cut into windows of `context` tokens that start `stride` tokens
apart; a last window that is not full is left out. In each window every token that has one before it, and that no earlier window scored,
is scored: `context - 1` tokens a window without overlap, so windows * (context - 1) in all. This is the loop

    loss = model(ids[None, start : start + context], labels=the same).loss        # for start in range(0, len(ids) - context + 1, context)

of transformers, and equals exp of the mean of its losses. Where the tokenizer begins texts with a token of its own (Llama 3's and Gemma's
BOS; SmolLM2 has none), each window begins with it and then takes `context - 1` tokens of the text, all of which are scored:
these models are at a loss without it. llama.cpp's tool scores only the second half of each window, so its numbers are lower
and cannot be compared with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..cache import PAGE, KVPool, Step
from ..errors import UsageError
from ..text.beginning import Tokenizer, beginning
from .intervals import Estimate, estimate
from .measures import negative_log_likelihood

CHUNK = 256  # rows of logits at a time: 50 MB for a vocabulary of 49,152
DOCUMENTS = 8  # from so many on, documents are the blocks of intervals; of fewer, drawing again says little


class Model(Protocol):
    """What of a LoadedModel is used here."""

    @property
    def text(self) -> Tokenizer: ...
    @property
    def max_model_len(self) -> int: ...
    def forward(self, step: Step, pool: KVPool) -> np.ndarray: ...
    def new_pool(self, pages: int) -> KVPool: ...


@dataclass(frozen=True)
class Windows:
    """Token ids [windows, context], how many tokens at the end of each window are scored, and of which document each scored token is."""

    tokens: np.ndarray
    scored: np.ndarray
    documents: np.ndarray | None = None

    @property
    def targets(self) -> int:
        """Scored tokens in all."""
        return int(self.scored.sum())

    @property
    def window_of(self) -> np.ndarray:
        """The window of each scored token."""
        return np.repeat(np.arange(len(self.scored)), self.scored)

    @property
    def positions(self) -> np.ndarray:
        """How many tokens each scored token has before it in its window."""
        context = self.tokens.shape[1]
        return np.concatenate([np.arange(context - int(scored), context) for scored in self.scored])

    @property
    def blocks(self) -> np.ndarray:
        """What intervals take as one piece, a label for each scored token: its document where there are DOCUMENTS of them, else its window."""
        if self.documents is not None and len(np.unique(self.documents)) >= DOCUMENTS:
            return self.documents
        return self.window_of


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log likelihood per token; `low` and `high` bound it with 95% (windows drawn again as blocks)."""

    value: float
    low: float
    high: float
    tokens: int
    windows: int
    losses: np.ndarray  # nats of each scored token, in order; for paired comparisons

    @property
    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


def windows_of(model: Model, text: str | Sequence[str], *, context: int = 1024, stride: int | None = None, windows: int | None = None) -> Windows:
    """The windows of a text, see above; at most `windows` of them. Raises UsageError when the text is too short for one.

    Several documents are tokenized as the one text that they make when they are put together as they are.
    """
    documents = [text] if isinstance(text, str) else list(text)
    stride = context if stride is None else stride
    if not 1 < context <= model.max_model_len:
        raise UsageError(f"{context} tokens", where="context", remedy=f"this model takes 2 to {model.max_model_len}")
    if not 0 < stride <= context or (windows is not None and windows < 1):
        raise UsageError(f"a stride of {stride} and {windows} windows", remedy=f"the stride is 1 to {context}, and at least one window is needed")
    ids = np.asarray(model.text.encode("".join(documents), special=False), np.int32)
    begin = beginning(model.text)
    width = context - len(begin)
    step = min(stride, width)
    starts = range(0, len(ids) - width + 1, step)[:windows]
    if not starts:
        raise UsageError(f"the text has {len(ids)} tokens, fewer than one window of {width}", remedy="use a longer text or a smaller context")
    rows = [np.concatenate([begin, ids[start : start + width]]).astype(np.int32) for start in starts]
    first = width - (0 if len(begin) else 1)
    scored = np.array([first] + [step if step < width else first] * (len(rows) - 1))
    owner = _owners(model, documents, len(ids))
    return Windows(np.stack(rows), scored, np.concatenate([owner[s + width - n : s + width] for s, n in zip(starts, scored.tolist(), strict=True)]))


def _owners(model: Model, documents: Sequence[str], count: int) -> np.ndarray:
    """The document of each token. (A token across two documents makes this wrong by one token, which is nothing to an interval.)"""
    if len(documents) == 1:
        return np.zeros(count, np.int32)
    sizes = [len(model.text.encode(document, special=False)) for document in documents]
    owner = np.repeat(np.arange(len(documents), dtype=np.int32), sizes)[:count]
    return np.concatenate([owner, np.full(count - len(owner), len(documents) - 1, np.int32)])


def logits_of(model: Model, windows: Windows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(logits [rows, vocab], target ids [rows]) of the scored tokens in order, at most CHUNK rows at a time.

    The logits may be a buffer that the next call writes again: use them before taking the next pair.
    """
    context = windows.tokens.shape[1]
    pages = -(-context // PAGE)
    pool = model.new_pool(pages)
    table = np.arange(pages, dtype=np.int32)[None, :]
    for tokens, scored in zip(windows.tokens, windows.scored, strict=True):
        before = context - int(scored)  # the first scored token; its logits are those of the row before it
        for start in range(0, context - 1, CHUNK):
            stop = min(start + CHUNK, context - 1)
            rows = np.arange(start, stop, dtype=np.int32)
            select = rows[rows + 1 >= before] - start
            step = Step(tokens=np.ascontiguousarray(tokens[start:stop]), positions=rows, slots=rows, starts=np.array([0, stop - start], np.int32),
                        lengths=np.array([stop], np.int32), tables=table, select=select.astype(np.int32))
            logits = model.forward(step, pool)
            if len(select):
                yield np.asarray(logits), tokens[start + select + 1]


def perplexity(model: Model, text: str | Sequence[str], *, context: int = 1024, stride: int | None = None, windows: int | None = None,
               on_window: Callable[[int, int, float], None] | None = None) -> Perplexity:
    """Perplexity of `model` on `text`; `windows` bounds the number of windows, None takes the whole text. Raises UsageError.

    `on_window(done, total, perplexity so far)` is called after each window.
    """
    cuts = windows_of(model, text, context=context, stride=stride, windows=windows)
    ends = set(np.cumsum(cuts.scored).tolist())
    losses: list[np.ndarray] = []
    tokens, total, done = 0, 0.0, 0
    for logits, targets in logits_of(model, cuts):
        losses.append(negative_log_likelihood(logits, targets))
        tokens, total = tokens + len(targets), total + float(losses[-1].sum())
        if tokens in ends and on_window is not None:
            done += 1
            on_window(done, len(cuts.tokens), math.exp(total / tokens))
    return summarize(np.concatenate(losses), cuts)


def summarize(losses: np.ndarray, windows: Windows) -> Perplexity:
    """Perplexity from the losses of each scored token [tokens], in the order of the windows."""
    found = estimate(losses, windows.blocks, positive=True).exp
    return Perplexity(found.value, found.low, found.high, len(losses), len(windows.tokens), losses)
