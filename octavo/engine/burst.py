"""Bursts: several steps of decoding computed one after another before the engine looks at what came of them.

Between two forwards of a small model the scheduler, the sampler and the text of each token take 0.12 to 0.18 ms (SmolLM2; LOG.md): their code and objects have
left the caches by the time they run again. In a burst only what decides the next token runs in between. Tokens are the same (each depends on nothing
but its own logits, its seed and its place); those after the end of an answer are dropped. The price: tokens come a burst at a time, and a new request
waits for up to one. So a burst takes no longer than an eye needs to see it, and models that are slower than that never get one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .sampler import draw
from .scheduler import Chunk

MOST = 16  # steps of a burst


def takes_raw(chunk: Chunk) -> bool:
    """Whether the next tokens of a sequence need nothing but raw logits: no grammar, no penalty, no log probabilities."""
    sequence = chunk.sequence
    return sequence.grammar is None and sequence.sampling.logprobs is None and sequence.sampler.raw(sequence.generated)


class Chooser:
    """Chooses the next tokens of a burst, and keeps them: `tokens` and `sound`, one int32 and one bool array [sequences] per step."""

    def __init__(self, loaded: Any, drawer: Any, chunks: list[Chunk]) -> None:
        self._loaded, self._drawer = loaded, drawer
        self._drawn = [(index, chunk.sequence) for index, chunk in enumerate(chunks) if not chunk.sequence.sampler.greedy]
        self.tokens: list[np.ndarray] = []
        self.sound: list[np.ndarray] = []

    @property
    def greedy(self) -> bool:
        """Whether every sequence takes its likeliest token."""
        return not self._drawn

    def keep(self, tokens: np.ndarray, largest: np.ndarray) -> None:
        """Tokens that were chosen elsewhere, and their logits, both [steps, sequences]."""
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
