"""From chunks to the arrays of one forward pass."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from ..cache import PAGE, Step
from .scheduler import Chunk

if TYPE_CHECKING:
    from ..cache import KVPool
    from ..loading import LoadedModel
    from .burst import Chooser
    from .sequence import Sequence


class Runner:
    """Builds Step arrays and calls the model."""

    def __init__(self, loaded: LoadedModel, pool: KVPool) -> None:
        self.loaded, self.pool = loaded, pool
        self._count = np.arange(1, dtype=np.int32)   # 0, 1, 2 ...

    def forward(self, chunks: list[Chunk]) -> tuple[np.ndarray, list[slice]]:
        """Logits [rows wanted, vocabulary] and, for each chunk, which of them are its own (empty for a chunk inside a prompt)."""
        step, owned = self.step(chunks)
        return self.loaded.forward(step, self.pool), owned

    def burst(self, chunks: list[Chunk], steps: int, choose: Chooser) -> None:
        """`steps` forwards of sequences that decode, each taking the tokens that `choose(logits [sequences, vocabulary], step)` gave (int32
        [sequences]) after the one before. The sequences must have pages for as many tokens."""
        found = self._decoding(chunks, steps)
        assert found is not None
        step = found[0]
        draws = choose.draws(steps)
        ahead = getattr(self.loaded, "ahead", None)
        if ahead is not None and (made := ahead(step, self.pool, steps, draws)) is not None and (first := next(made, None)) is not None:
            choose.arriving = chain([first], made)
            return
        together = getattr(self.loaded, "together", None)
        if together is not None and (at_once := together(step, self.pool, steps, draws)) is not None:
            choose.take(*at_once)
            return
        for turn in range(steps):
            tokens = choose(self.loaded.forward(step, self.pool), turn)
            if turn + 1 == steps:
                return
            step.tokens[:] = tokens
            for array in (step.positions, step.lengths):
                np.add(array, 1, out=array)
            page, place = np.divmod(step.positions, PAGE)
            step.slots[:] = step.tables[step.select, page] * PAGE + place

    def copy(self, source: int, target: int) -> None:
        """Copy a page of the key-value cache."""
        self.loaded.copy_page(self.pool, source, target)

    def step(self, chunks: list[Chunk]) -> tuple[Step, list[slice]]:
        """The arrays of a step, and for each chunk which rows of its logits are its own."""
        return self._decoding(chunks) or self._any(chunks)

    def _decoding(self, chunks: list[Chunk], steps: int = 1) -> tuple[Step, list[slice]] | None:
        """The same for a step in which every sequence computes its newest token, as most do; None for any other. Its tables
        reach as far as `steps` of them do."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for chunk in chunks:
            sequence = chunk.sequence
            at = sequence.computed
            if chunk.count != 1 or at + 1 != len(sequence.tokens) or not sequence.prefilled:
                return None
            tokens.append(sequence.tokens[at])
            positions.append(at)
            slots.append(sequence.pages[at // PAGE] * PAGE + at % PAGE)
        size = len(chunks)
        if len(self._count) <= size:
            self._count = np.arange(2 * size, dtype=np.int32)
        numbers = np.array((tokens, positions, slots), np.int32)
        tables = np.zeros((size, (max(positions) + steps - 1) // PAGE + 1), np.int32)
        for index, chunk in enumerate(chunks):
            used = (positions[index] + steps - 1) // PAGE + 1
            tables[index, :used] = _table(chunk.sequence, used)[:used]
        return Step(tokens=numbers[0], positions=numbers[1], slots=numbers[2], starts=self._count[: size + 1], lengths=numbers[1] + np.int32(1), tables=tables,
                    select=self._count[:size]), [slice(i, i + 1) for i in range(size)]

    def _any(self, chunks: list[Chunk]) -> tuple[Step, list[slice]]:
        size = len(chunks)
        counts = np.array([c.count for c in chunks], np.int32)
        before = np.array([c.sequence.computed for c in chunks], np.int32)
        starts = np.zeros(size + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        lengths = before + counts
        tables = np.zeros((size, -(-int(lengths.max()) // PAGE)), np.int32)
        tokens: list[int] = []
        select: list[int] = []
        owned: list[slice] = []
        for index, chunk in enumerate(chunks):
            sequence, count = chunk.sequence, chunk.count
            start = sequence.computed
            used = -(-(start + count) // PAGE)
            tables[index, :used] = _table(sequence, used)[:used]
            if count == 1:
                tokens.append(sequence.tokens[start])
            else:
                tokens += sequence.tokens[start : start + count]
            first = len(select)
            if sequence.wants_prompt_logprobs:
                select += range(starts[index], starts[index + 1])
            elif start + count == len(sequence.tokens):
                select.append(len(tokens) - 1)
            owned.append(slice(first, len(select)))
        of_row = np.repeat(np.arange(size, dtype=np.int32), counts)
        positions = np.arange(len(tokens), dtype=np.int32) - (starts[:-1] - before)[of_row]
        slots = tables[of_row, positions // PAGE] * PAGE + positions % PAGE
        return Step(
            tokens=np.array(tokens, np.int32), positions=positions, slots=slots, starts=starts, lengths=lengths, tables=tables,
            select=np.array(select, np.int32),
        ), owned


def _table(sequence: Sequence, used: int) -> np.ndarray:
    """int32 array that begins with the first `used` pages of a sequence. Kept, because converting a list costs as much as all else here."""
    table = sequence.table
    if sequence.tabled < used or table is None:
        if table is None or len(table) < len(sequence.pages):
            sequence.table = table = np.zeros(2 * len(sequence.pages), np.int32)
            sequence.tabled = 0
        table[sequence.tabled : len(sequence.pages)] = sequence.pages[sequence.tabled :]
        sequence.tabled = len(sequence.pages)
    return table
