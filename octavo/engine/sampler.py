"""From logits to the next token of one choice.

The order of operations is that of `Sampling`. Cost matters: 64 users and a vocabulary of 50,000 must cost little beside the forward
pass, so nothing sorts a whole row unless it has to. Probabilities that can matter sit in a short head of the row; the head is sorted,
and the whole row only when the head turns out not to hold all that top_k or top_p asks for: the result is exact either way.

The draw is counter based: token i of choice c under seed s gets the number `uniform(s, c, i)` and looks at nothing but its own logits.
So the same seed gives the same text in any batch, after a preemption and after a restart.
"""

from __future__ import annotations

import math

import numpy as np

from .request import Sampling, TokenLogprob

_MASK = (1 << 64) - 1
_NEVER = np.float32(-np.inf)
# What goes into the head, as the logarithm of the weight relative to the likeliest token's: tried in turn, the last is the whole row.
_HEADS = (np.float32(math.log(1e-3)), np.float32(math.log(1e-6)), _NEVER)


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

    def plain(self, index: int) -> bool:
        """True when token `index` is the argmax of the raw logits."""
        return self.greedy and self.bias is None and not self._penal and not self._repeats and index >= self.sampling.min_tokens

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
        best = int(row.argmax())
        if self.greedy or row[best] == -np.inf:
            return best
        return _draw(row, row[best], self.sampling, uniform(self.seed, self.choice, index), self.work.weight)

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


def _draw(row: np.ndarray, top: np.float32, s: Sampling, u: float, work: np.ndarray) -> int:
    """Draw from softmax(row / temperature) cut by top_k, top_p and min_p. `top` is the largest value of row, u in [0, 1); `work` is
    written. Weights are relative to the likeliest token's."""
    scale = np.float32(1 / s.temperature)
    cut_k = 0 < s.top_k < row.size
    if not cut_k and s.top_p >= 1:
        if not s.min_p:
            return _pick(_weights(row, top, scale, work), u)
        ids = np.flatnonzero(row >= top + np.float32(math.log(s.min_p)) / scale)
        return int(ids[_pick(_weights(row[ids], top, scale), u)])
    total = 0.0 if cut_k else float(_weights(row, top, scale, work).sum())
    for least in _HEADS:
        ids = np.flatnonzero(row >= top + least / scale)
        if ids.size < s.top_k and cut_k and least > _NEVER:
            continue
        head = _weights(row[ids], top, scale)
        order = np.argsort(-head, kind="stable")
        ids, head = ids[order], head[order]
        sums = np.cumsum(head, dtype=np.float64)
        if cut_k:
            ids, head, sums = ids[: s.top_k], head[: s.top_k], sums[: s.top_k]
            total = float(sums[-1])
        keep = ids.size
        if s.top_p < 1:
            wanted = s.top_p * total
            if sums[-1] < wanted and least > _NEVER:
                continue                            # the nucleus reaches beyond the head
            keep = min(int(np.searchsorted(sums, wanted)) + 1, keep)
        if s.min_p > 0:
            keep = min(keep, int(np.searchsorted(-head, -np.float32(s.min_p), side="right")))
        return int(ids[min(int(np.searchsorted(sums[:keep], u * sums[keep - 1], side="right")), keep - 1)])
    raise AssertionError("unreachable: the last head is the whole row")


def _weights(values: np.ndarray, top: np.float32, scale: np.float32, out: np.ndarray | None = None) -> np.ndarray:
    weight = np.subtract(values, top, out=out)
    if scale != 1:
        weight *= scale
    return np.exp(weight, out=weight)


_BLOCK = 256


def _pick(weight: np.ndarray, u: float) -> int:
    """The index that u in [0, 1) picks from weights >= 0: by blocks, because a cumulative sum of the whole row is slow."""
    whole = weight.size // _BLOCK * _BLOCK
    blocks = np.append(np.einsum("ij->i", weight[:whole].reshape(-1, _BLOCK)), weight[whole:].sum())
    sums = np.cumsum(blocks, dtype=np.float64)
    target = u * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), sums.size - 1)
    inside = np.cumsum(weight[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    # Rounding may put the target a hair past the block's own sum: then its last token with a weight.
    rest = min(target - (sums[block - 1] if block else 0.0), np.nextafter(inside[-1], 0))
    return block * _BLOCK + int(np.searchsorted(inside, rest, side="right"))
