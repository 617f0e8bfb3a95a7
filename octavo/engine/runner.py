"""From chunks to the arrays of one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..cache import PAGE, Step
from .scheduler import Chunk

if TYPE_CHECKING:
    from ..cache import KVPool
    from ..loading import LoadedModel


class Runner:
    """Builds Step arrays and calls the model."""

    def __init__(self, loaded: LoadedModel, pool: KVPool) -> None:
        self.loaded, self.pool = loaded, pool

    def forward(self, chunks: list[Chunk]) -> tuple[np.ndarray, list[slice]]:
        """Logits [rows wanted, vocabulary] and, for each chunk, which of them are its own (empty for a chunk inside a prompt)."""
        step, owned = self.step(chunks)
        return self.loaded.forward(step, self.pool), owned

    def copy(self, source: int, target: int) -> None:
        """Copy a page of the key-value cache."""
        self.loaded.copy_page(self.pool, source, target)

    def step(self, chunks: list[Chunk]) -> tuple[Step, list[slice]]:
        size = len(chunks)
        counts = np.fromiter((c.count for c in chunks), np.int32, size)
        before = np.fromiter((c.sequence.computed for c in chunks), np.int32, size)
        starts = np.zeros(size + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        lengths = before + counts
        tables = np.zeros((size, int(-(-lengths.max() // PAGE))), np.int32)
        tokens: list[int] = []
        select: list[int] = []
        owned: list[slice] = []
        for index, chunk in enumerate(chunks):
            sequence, start = chunk.sequence, chunk.sequence.computed
            used = -(-(start + chunk.count) // PAGE)
            tables[index, :used] = sequence.pages[:used]
            if chunk.count == 1:
                tokens.append(sequence.tokens[start])
            else:
                tokens += sequence.tokens[start : start + chunk.count]
            first = len(select)
            if sequence.wants_prompt_logprobs:
                select += range(starts[index], starts[index + 1])
            elif chunk.samples:
                select.append(len(tokens) - 1)
            owned.append(slice(first, len(select)))
        of_row = np.repeat(np.arange(size, dtype=np.int32), counts)
        positions = np.arange(len(tokens), dtype=np.int32) - (starts[:-1] - before)[of_row]
        slots = tables[of_row, positions // PAGE] * PAGE + positions % PAGE
        return Step(
            tokens=np.array(tokens, np.int32), positions=positions, slots=slots, starts=starts, lengths=lengths, tables=tables,
            select=np.array(select, np.int32),
        ), owned
