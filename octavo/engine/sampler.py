"""From logits to the next token of one choice.

The order of operations is that of `Sampling`. Penalties, bias and masks are NumPy on one row; drawing is native (csrc/sampling.h), for all
plain rows of a step at once by the thread team: 64 users and a vocabulary of 50,000 must cost little beside the forward pass.

The draw is counter based: token i of choice c under seed s gets the number `uniform(s, c, i)` and looks at nothing but its own logits.
So the same seed gives the same text in any batch, after a preemption and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _native
from .request import Sampling, TokenLogprob

_MASK = (1 << 64) - 1
_NEVER = np.float32(-np.inf)


def _splitmix(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, choice: int, index: int) -> float:
    """A number in [0, 1) that depends on the three integers alone."""
    return (_splitmix(_splitmix(_splitmix(seed & _MASK) ^ choice) ^ index) >> 11) * 2.0**-53


class Workspace:
    """Arrays of one row, reused for every draw of an engine: an allocation of this size costs as much as the arithmetic."""

    def __init__(self, vocabulary: int) -> None:
        self.row = np.empty(vocabulary, np.float32)
        self.weight = np.empty(vocabulary, np.float32)
        self.drawer = _native.Drawer(_native.Team(1))


def token_logprob(row: np.ndarray, token: int, top: int, work: Workspace | None = None) -> TokenLogprob:
    """Log probability of `token` and of the `top` likeliest tokens under the model itself: the raw logits, before temperature,
    penalties and masks (as vLLM's default; OpenAI's own models report the same at temperature 1)."""
    weight = (work or Workspace(row.size)).weight
    largest = row.max()
    np.subtract(row, largest, out=weight)
    total = float(largest) + float(np.log(np.exp(weight, out=weight).sum(dtype=np.float64)))
    best: tuple[tuple[int, float], ...] = ()
    if top:
        best = tuple((int(i), float(row[i]) - total) for i in _largest(row, top))
    return TokenLogprob(token, float(row[token]) - total, best)


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest values, largest first, equal ones by id."""
    count = min(count, row.size)
    largest = row.max()
    for below in (3, 9):
        head = np.flatnonzero(row >= largest - below)
        if head.size >= count:
            break
    else:
        head = np.flatnonzero(row >= np.partition(row, row.size - count)[row.size - count])
    return head[np.argsort(-row[head], kind="stable")[:count]]


class Sampler:
    """Sampling state of one choice: what penalties must remember."""

    def __init__(self, sampling: Sampling, *, seed: int, choice: int, prompt: tuple[int, ...], end_ids: tuple[int, ...], vocabulary: int,
                 work: Workspace | None = None) -> None:
        self.sampling, self.seed, self.choice, self.work = sampling, seed, choice, work or Workspace(vocabulary)
        s = sampling
        self.greedy = s.temperature < 1e-5      # below, the draw is greedy but for rounding
        self.bias = (np.array(list(s.logit_bias), np.int64), np.array(list(s.logit_bias.values()), np.float32)) if s.logit_bias else None
        self.ends = np.array(sorted(set(end_ids)), np.int64)
        self._penal = s.presence_penalty != 0 or s.frequency_penalty != 0
        self._repeats = s.repetition_penalty != 1
        self._seen: np.ndarray | None = None     # bool: in the prompt or the answer
        self._counts: np.ndarray | None = None   # times in the answer
        if self._repeats:
            self._seen = np.zeros(vocabulary, bool)
            self._seen[list(prompt)] = True
        if self._penal:
            self._counts = np.zeros(vocabulary, np.float32)
            self._given = np.zeros(vocabulary, bool)   # _counts > 0: a scan of it is 20 times as fast

    def raw(self, index: int) -> bool:
        """True when token `index` depends on nothing but the raw logits (and is their argmax when `greedy`), unless there is a grammar."""
        return self.bias is None and not self._penal and not self._repeats and index >= self.sampling.min_tokens

    def accept(self, token: int) -> None:
        """The token was drawn."""
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
            self._given[token] = True

    def draw(self, logits: np.ndarray, index: int, allowed: np.ndarray | None = None) -> int:
        """The token of place `index` of the answer from float32 logits [vocabulary], which are not changed.

        `allowed` [vocabulary] bool: the grammar's mask.
        """
        row = self._adjusted(logits, index, allowed)
        if self.greedy:
            return int(row.argmax())
        return draw(self.work.drawer, row[None], [(self, 0, index)])[0]

    def _adjusted(self, logits: np.ndarray, index: int, allowed: np.ndarray | None) -> np.ndarray:
        s, row = self.sampling, logits
        few = index < s.min_tokens
        if allowed is not None:
            row = np.where(allowed, logits, _NEVER)
        elif self.bias is not None or self._penal or self._repeats or few:
            row = np.add(logits, np.float32(0), out=self.work.row)   # a copy, many times faster than np.copyto
        if self.bias is not None:
            row[self.bias[0]] += self.bias[1]
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            values = row[ids]
            row[ids] = np.where(values > 0, values / np.float32(s.repetition_penalty), values * np.float32(s.repetition_penalty))
        if self._counts is not None:
            ids = np.flatnonzero(self._given)
            row[ids] -= np.float32(s.presence_penalty) + np.float32(s.frequency_penalty) * self._counts[ids]
        if few and (allowed is None or np.count_nonzero(allowed) > np.count_nonzero(allowed[self.ends])):
            row[self.ends] = _NEVER                # unless the grammar has come to its end and allows nothing else
        return row


def draw(drawer: _native.Drawer, logits: Any, wanted: Sequence[tuple[Sampler, int, int]]) -> list[int]:
    """The tokens of (sampler, row of the logits, place in the answer), none greedy, by softmax(row / temperature) cut by top_k, top_p and min_p."""
    settings = [sampler.sampling for sampler, _, _ in wanted]
    rows, u = [row for _, row, _ in wanted], [uniform(sampler.seed, sampler.choice, index) for sampler, _, index in wanted]
    temperatures, ranks, top_p, min_p = [s.temperature for s in settings], [s.top_k for s in settings], [s.top_p for s in settings], [s.min_p for s in settings]
    there = getattr(logits, "draw", None)  # a GPU's logits stay there
    if there is None:
        return drawer.draw(np.asarray(logits), rows, temperatures, ranks, top_p, min_p, u)
    tokens: list[int] = there(rows, temperatures, ranks, top_p, min_p, u)
    for i in [place for place, token in enumerate(tokens) if token < 0]:
        row = np.ascontiguousarray(logits[rows[i]])[None]
        (tokens[i],) = drawer.draw(row, [0], [temperatures[i]], [ranks[i]], [top_p[i]], [min_p[i]], [u[i]])
    return tokens


def make_drawer(backend: Any) -> _native.Drawer:
    """A drawer that uses the backend's thread team, where it has one."""
    team = getattr(backend, "team", None)
    return _native.Drawer(team, backend.isa) if team is not None else _native.Drawer(_native.Team(1))
