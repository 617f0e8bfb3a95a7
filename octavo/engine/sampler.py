"""From logits to the next token of one choice.

The order of operations is that of `Sampling`. Cost matters: 64 users and a vocabulary of 50,000 must cost little beside the forward
pass, so nothing sorts a whole row unless it has to. Probabilities that can matter sit in a short head of the row; the head is sorted,
and the whole row only when the head turns out not to hold all that top_k or top_p asks for: the result is exact either way.

The draw is counter based: token i of choice c under seed s gets the number `uniform(s, c, i)` and looks at nothing but its own logits.
So the same seed gives the same text in any batch, after a preemption and after a restart.
"""

from __future__ import annotations

import numpy as np

from .request import Sampling, TokenLogprob

_MASK = (1 << 64) - 1
_HEAD = np.float32(1e-4)   # relative to the largest probability: what goes into the head at first


def _splitmix(x: int) -> int:
    """The output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, choice: int, index: int) -> float:
    """A number in [0, 1) that depends on the three integers alone."""
    return (_splitmix(_splitmix(_splitmix(seed & _MASK) ^ choice) ^ index) >> 11) * 2.0**-53


def log_sum_exp(row: np.ndarray) -> float:
    top = float(row.max())
    return top + float(np.log(np.exp(row - np.float32(top)).sum(dtype=np.float64)))


def token_logprob(row: np.ndarray, token: int, top: int) -> TokenLogprob:
    """Log probability of `token` and of the `top` likeliest tokens under the model itself: the raw logits, before temperature,
    penalties and masks (as vLLM's default; OpenAI's own models report the same at temperature 1)."""
    total = log_sum_exp(row)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        ids = _largest(row, top)
        best = tuple((int(i), float(row[i]) - total) for i in ids)
    return TokenLogprob(token, float(row[token]) - total, best)


def _largest(row: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest values, largest first, equal ones by id."""
    count = min(count, row.size)
    head = np.flatnonzero(row >= row.max() - 10)
    if head.size < count:
        head = np.flatnonzero(row >= np.partition(row, row.size - count)[row.size - count])
    return head[np.argsort(-row[head], kind="stable")[:count]]


class Sampler:
    """Sampling state of one choice: what penalties must remember."""

    def __init__(self, sampling: Sampling, *, seed: int, choice: int, prompt: tuple[int, ...], end_ids: tuple[int, ...], vocabulary: int) -> None:
        self.sampling, self.seed, self.choice = sampling, seed, choice
        s = sampling
        self.greedy = s.temperature < 1e-5      # below, the draw is greedy but for rounding
        self.bias = (np.array(list(s.logit_bias), np.int64), np.array(list(s.logit_bias.values()), np.float32)) if s.logit_bias else None
        self.ends = np.array(end_ids, np.int64)
        self._penal = s.presence_penalty != 0 or s.frequency_penalty != 0
        self._repeats = s.repetition_penalty != 1
        self._seen: np.ndarray | None = None     # bool: in the prompt or the answer
        self._counts: np.ndarray | None = None   # times in the answer
        if self._repeats:
            self._seen = np.zeros(vocabulary, bool)
            self._seen[list(prompt)] = True
        if self._penal:
            self._counts = np.zeros(vocabulary, np.int32)

    def plain(self, index: int) -> bool:
        """True when token `index` is the argmax of the raw logits."""
        return self.greedy and self.bias is None and not self._penal and not self._repeats and index >= self.sampling.min_tokens

    def accept(self, token: int) -> None:
        """The token was drawn."""
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1

    def draw(self, logits: np.ndarray, index: int, allowed: np.ndarray | None = None) -> int:
        """The token of place `index` of the answer from float32 logits [vocabulary], which are not changed.

        `allowed` [vocabulary] bool: the grammar's mask.
        """
        row = self._adjusted(logits, index, allowed)
        best = int(row.argmax())
        if self.greedy or row[best] == -np.inf:
            return best
        return _draw(row, float(row[best]), self.sampling, uniform(self.seed, self.choice, index))

    def _adjusted(self, logits: np.ndarray, index: int, allowed: np.ndarray | None) -> np.ndarray:
        s, row = self.sampling, logits
        few = index < s.min_tokens
        if self.bias is not None or self._penal or self._repeats or few or allowed is not None:
            row = logits.copy()
        if self.bias is not None:
            row[self.bias[0]] += self.bias[1]
        if self._seen is not None:
            ids = np.flatnonzero(self._seen)
            values = row[ids]
            row[ids] = np.where(values > 0, values / np.float32(s.repetition_penalty), values * np.float32(s.repetition_penalty))
        if self._counts is not None:
            ids = np.flatnonzero(self._counts)
            row[ids] -= np.float32(s.presence_penalty) + np.float32(s.frequency_penalty) * self._counts[ids].astype(np.float32)
        if few and (allowed is None or np.count_nonzero(allowed) > np.count_nonzero(allowed[self.ends])):
            row[self.ends] = -np.inf                # unless the grammar has come to its end and allows nothing else
        if allowed is not None:
            row[~allowed] = -np.inf
        return row


def _draw(row: np.ndarray, top: float, s: Sampling, u: float) -> int:
    """Draw from softmax(row / temperature) cut by top_k, top_p and min_p. `top` is the largest value of row, u in [0, 1)."""
    weight = np.subtract(row, np.float32(top))
    weight *= np.float32(1 / s.temperature)
    np.exp(weight, out=weight)                      # relative to the likeliest token: at most 1
    cut_k = 0 < s.top_k < row.size
    if not cut_k and s.top_p >= 1:
        if s.min_p > 0:
            weight[weight < np.float32(s.min_p)] = 0
        return _pick(weight, u)
    total = 0.0 if cut_k else float(weight.sum(dtype=np.float64))
    for least in (_HEAD, np.float32(0)):
        ids = np.flatnonzero(weight >= least) if least else np.arange(row.size)
        if cut_k and least and ids.size < s.top_k:
            continue
        ids = ids[np.argsort(-weight[ids], kind="stable")]
        sums = np.cumsum(weight[ids], dtype=np.float64)
        if cut_k:
            ids, sums = ids[: s.top_k], sums[: s.top_k]
            total = float(sums[-1])
        wanted = s.top_p * total
        if s.top_p < 1 and sums[-1] < wanted and least:
            continue                                # the nucleus reaches beyond the head
        keep = ids.size if s.top_p >= 1 else int(np.searchsorted(sums, wanted)) + 1
        if s.min_p > 0:
            keep = min(keep, int(np.searchsorted(-weight[ids], -np.float32(s.min_p), side="right")))
        keep = max(min(keep, ids.size), 1)
        return int(ids[min(int(np.searchsorted(sums[:keep], u * sums[keep - 1], side="right")), keep - 1)])
    raise AssertionError("unreachable: the second pass takes the whole row")


_BLOCK = 256


def _pick(weight: np.ndarray, u: float) -> int:
    """The index that u in [0, 1) picks from weights >= 0: by blocks, because a cumulative sum of the whole row is slow."""
    whole = weight.size // _BLOCK * _BLOCK
    blocks = weight[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float32).astype(np.float64)
    sums = np.cumsum(np.append(blocks, weight[whole:].sum(dtype=np.float64)))
    target = u * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), sums.size - 1)
    inner = weight[block * _BLOCK : (block + 1) * _BLOCK] if block * _BLOCK < whole else weight[whole:]
    inside = np.cumsum(inner, dtype=np.float64)
    # Rounding may put the target a hair past the block's own sum: then its last token with a weight.
    rest = min(target - (sums[block - 1] if block else 0.0), np.nextafter(inside[-1], 0))
    return block * _BLOCK + int(np.searchsorted(inside, rest, side="right"))
