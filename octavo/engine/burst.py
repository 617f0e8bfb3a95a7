"""Bursts: several steps of decoding computed one after another before the engine looks at what came of them.

Between two forwards of a small model the scheduler, the sampler and the text of each token take 0.12 to 0.18 ms (SmolLM2; LOG.md): their code and objects have
left the caches by the time they run again. In a burst only what decides the next token runs in between. Tokens are the same (each depends on nothing
but its own logits, its seed and its place); those after the end of an answer are dropped. The price: tokens come a burst at a time, and a new request
waits for up to one. So a burst takes no longer than an eye needs to see it, and models that are slower than that never get one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..kernels.op import Draws
from .sampler import draw, uniform
from .scheduler import Chunk

MOST = 16  # steps of a burst


def takes_raw(chunk: Chunk) -> bool:
    """Whether the next tokens of a sequence need nothing but raw logits: no grammar, no penalty, no log probabilities."""
    sequence = chunk.sequence
    return sequence.grammar is None and sequence.sampling.logprobs is None and sequence.sampler.raw(sequence.generated)


class Chooser:
    """Chooses the next tokens of a burst, and keeps them: `tokens` and `sound`, one int32 and one bool array [sequences] per step. arriving: (tokens, largest
    logits) that a device chooses itself."""

    def __init__(self, loaded: Any, drawer: Any, chunks: list[Chunk]) -> None:
        self._loaded, self._drawer, self._size = loaded, drawer, len(chunks)
        self._drawn = [(index, chunk.sequence) for index, chunk in enumerate(chunks) if not chunk.sequence.sampler.greedy]
        self.tokens: list[np.ndarray] = []
        self.sound: list[np.ndarray] = []
        self.arriving: Iterable[tuple[np.ndarray, np.ndarray]] = ()

    def draws(self, steps: int) -> Draws | None:
        """How the next tokens are drawn, for a device that does it; None where every sequence takes its likeliest."""
        if not self._drawn:
            return None
        temperature, top_k, top_p, min_p = np.zeros(self._size), np.zeros(self._size, np.int64), np.ones(self._size), np.zeros(self._size)
        u = np.zeros((steps, self._size))
        for index, sequence in self._drawn:
            sampler, s = sequence.sampler, sequence.sampling
            temperature[index], top_k[index], top_p[index], min_p[index] = s.temperature, s.top_k, s.top_p, s.min_p
            u[:, index] = [uniform(sampler.seed, sampler.choice, sequence.generated + turn) for turn in range(steps)]
        return Draws(temperature, top_k, top_p, min_p, u)

    def steps(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(tokens, sound) of each step; of a device as they come, while it computes the next ones."""
        yield from zip(self.tokens, self.sound, strict=True)
        for tokens, largest in self.arriving:
            yield tokens, np.isfinite(largest)

    def take(self, tokens: np.ndarray, largest: np.ndarray) -> None:
        """What several steps gave: int32 and float32 [steps, sequences]."""
        self.tokens += list(tokens)
        self.sound += list(np.isfinite(largest))

    def __call__(self, logits: np.ndarray, turn: int) -> np.ndarray:
        best, top = self._loaded.best(logits)
        tokens, sound = best.copy(), np.isfinite(top)  # a NaN counts as the largest, so this tells whether the whole row is sound
        wanted = [(sequence.sampler, index, sequence.generated + turn) for index, sequence in self._drawn if sound[index]]
        if wanted:
            tokens[[index for _, index, _ in wanted]] = draw(self._drawer, logits, wanted)
        self.tokens.append(tokens)
        self.sound.append(sound)
        return tokens


class Pace:
    """How long a step of so many sequences takes, from the last ones."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds      # of a burst
        self._sequences, self._step = 0, 0.0

    def saw(self, sequences: int, steps: int, seconds: float) -> None:
        self._sequences, self._step = sequences, seconds / steps

    def steps(self, sequences: int) -> int:
        """Steps that fit into a burst; 1 when the last step was of other sequences."""
        return 1 if sequences != self._sequences else max(1, min(MOST, int(self.seconds / max(self._step, 1e-6))))
