"""Scorer: log likelihoods of continuations, many at a time, and answers by the engine; what task scoring asks of a model.

Multiple-choice tasks ask for several continuations of one context. The context is computed once, its pages are shared by all continuations, and the
rows of many requests go through the model together; logits are made only where a continuation is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..cache import PAGE, Step
from ..engine import Engine, EngineOptions, Finish, Request, Sampling
from ..errors import OctavoError
from ..quality import negative_log_likelihood

if TYPE_CHECKING:
    from ..loading import LoadedModel

ROWS = 256          # of one step: with 49,152 tokens in the vocabulary 50 MB of logits at most
PAGES = 8192 // PAGE  # of the scorer's own cache, or what one context and its continuations take if that is more
AT_ONCE = 256       # answers asked of the engine at a time


@dataclass
class _Span:
    """Rows to compute: `tokens` follow `before` others of a sequence whose pages are `pages`; scored[i]: the request and token that row i predicts."""

    tokens: list[int]
    before: int
    pages: list[int]
    scored: list[tuple[int, int]] | None = None


@dataclass
class _Group:
    """A context and the requests that continue it."""

    context: tuple[int, ...]
    members: list[int] = field(default_factory=list)


class Scorer:
    """Scores with a loaded model; closes the engine at the end (a context manager)."""

    def __init__(self, loaded: LoadedModel, *, max_batch: int = 64) -> None:
        self.loaded = loaded
        self._engine = Engine(loaded, EngineOptions(max_batch=max_batch, max_queue=2 * AT_ONCE))

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()

    @property
    def max_length(self) -> int:
        return self._engine.max_model_len

    def score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]], on_done: Callable[[int], None] = lambda count: None) -> list[tuple[float, bool]]:
        """(sum of log probabilities in nats, whether greedy generation would write it) for each (context, continuation) of token ids.

        Contexts hold at least one token; of one that is too long with its continuation, the beginning is cut off. `on_done(requests)` as they are ready.
        """
        groups: dict[tuple[int, ...], _Group] = {}
        follows: list[list[int]] = []
        for number, (before, after) in enumerate(requests):
            room = self.loaded.max_model_len + 1 - len(after)
            context = tuple(before[-room:]) if room > 0 else ()
            if not context or not after:
                raise OctavoError(f"{len(before)} tokens of context and {len(after)} to score do not fit", where=f"request {number}",
                                  remedy=f"at least one of each, {self.loaded.max_model_len + 1} in all")
            groups.setdefault(context, _Group(context)).members.append(number)
            follows.append(list(after))
        losses, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        waiting = sorted(groups.values(), key=lambda group: len(group.context), reverse=True)
        most = max((self._pages(group, follows) for group in waiting), default=1)
        pool = self.loaded.new_pool(max(PAGES, most))
        while waiting:
            free = list(range(max(PAGES, most)))
            batch: list[_Group] = []
            while waiting and self._pages(waiting[0], follows) <= len(free) - sum(self._pages(group, follows) for group in batch):
                batch.append(waiting.pop(0))
            heads, tails, copies = [], [], []
            for group in batch:
                known = len(group.context) - 1          # the last token of the context goes with each continuation: it predicts its first
                shared = [free.pop() for _ in range(-(-known // PAGE))]
                heads.append(_Span(list(group.context[:-1]), 0, shared))
                for number in group.members:
                    after = follows[number]
                    own = [free.pop() for _ in range(-(-(known + len(after)) // PAGE) - known // PAGE)]
                    if known % PAGE:
                        copies.append((shared[-1], own[0]))
                    tails.append(_Span([group.context[-1], *after[:-1]], known, shared[: known // PAGE] + own, [(number, token) for token in after]))
            for step, _ in _steps(heads):
                self.loaded.forward(step, pool)
            for source, target in copies:
                self.loaded.copy_page(pool, source, target)
            for step, scored in _steps(tails):
                logits = np.asarray(self.loaded.forward(step, pool))
                targets = np.array([token for _, token in scored])
                owners = np.array([number for number, _ in scored])
                np.add.at(losses, owners, negative_log_likelihood(logits, targets))
                np.logical_and.at(greedy, owners, logits.argmax(axis=1) == targets)
            on_done(sum(len(group.members) for group in batch))
        return [(-float(loss), bool(same)) for loss, same in zip(losses, greedy, strict=True)]

    def generate(self, prompts: Sequence[tuple[Sequence[int], Sampling]], on_done: Callable[[int], None] = lambda count: None) -> list[str]:
        """The answer to each prompt of token ids, from the engine that serves; of a prompt that leaves no room, the beginning is cut off."""
        self._engine.start()
        answers: list[str] = []
        for start in range(0, len(prompts), AT_ONCE):
            part = prompts[start : start + AT_ONCE]
            tickets = []
            for prompt, sampling in part:
                room = max(self._engine.max_model_len - (sampling.max_tokens or 1), 1)
                tickets.append(self._engine.submit(Request(tuple(prompt[-room:]), sampling)))
            for ticket in tickets:
                deltas = list(ticket)
                if deltas[-1].finish is Finish.ERROR:
                    raise OctavoError(deltas[-1].error or "the answer failed", where=self.loaded.name)
                answers.append("".join(delta.text for delta in deltas))
                on_done(1)
        return answers

    def _pages(self, group: _Group, follows: Sequence[Sequence[int]]) -> int:
        known = len(group.context) - 1
        return -(-known // PAGE) + sum(-(-(known + len(follows[number])) // PAGE) - known // PAGE for number in group.members)


def _steps(spans: Sequence[_Span]) -> list[tuple[Step, list[tuple[int, int]]]]:
    """The spans in steps of at most ROWS rows, one after the other; with each, what its selected rows predict."""
    found, chunks, rows = [], list[tuple[_Span, int, int]](), 0
    for span in spans:
        done = 0
        while done < len(span.tokens):
            count = min(len(span.tokens) - done, ROWS - rows)
            chunks.append((span, done, count))
            done, rows = done + count, rows + count
            if rows == ROWS:
                found.append(_step(chunks))
                chunks, rows = [], 0
    return [*found, _step(chunks)] if chunks else found


def _step(chunks: Sequence[tuple[_Span, int, int]]) -> tuple[Step, list[tuple[int, int]]]:
    counts = np.array([count for _, _, count in chunks], np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    before = np.array([span.before + first for span, first, _ in chunks], np.int32)
    lengths = before + counts
    tables = np.zeros((len(chunks), -(-int(lengths.max()) // PAGE)), np.int32)
    tokens: list[int] = []
    select: list[int] = []
    scored: list[tuple[int, int]] = []
    for index, (span, first, count) in enumerate(chunks):
        used = min(len(span.pages), tables.shape[1])
        tables[index, :used] = span.pages[:used]
        if span.scored is not None:
            select += range(len(tokens), len(tokens) + count)
            scored += span.scored[first : first + count]
        tokens += span.tokens[first : first + count]
    of_row = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    positions = (np.arange(len(tokens), dtype=np.int32) - (starts[:-1] - before)[of_row]).astype(np.int32)
    slots = (tables[of_row, positions // PAGE] * PAGE + positions % PAGE).astype(np.int32)
    return Step(tokens=np.array(tokens, np.int32), positions=positions, slots=slots, starts=starts, lengths=lengths.astype(np.int32), tables=tables,
                select=np.array(select, np.int32)), scored
