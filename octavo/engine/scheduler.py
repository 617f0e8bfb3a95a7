"""Who computes what in the next step: continuous batching with chunked prompts.

Every step: first one row for each sequence that decodes; then prompts share what is left of the row budget. Admission is in order of
arrival. The oldest prompt is sure of half the rows, so every prompt gets done; the others go shortest first, so a short one is not
stuck behind a long one and the mean time to the first token is short. Pages for all tokens of a sequence are taken when it is admitted
and one at a time as it grows; when none is left the sequence admitted last is set back to the head of the queue and later recomputed
from its tokens, to the same text.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..cache import PAGE
from .pages import PagePool
from .sequence import Sequence

ECHO_ROWS = 128  # rows of a step whose logits are all kept because a prompt's log probabilities are wanted: 128 x 50,000 floats = 26 MB


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a sequence, from its `computed` on."""

    sequence: Sequence
    count: int

    @property
    def samples(self) -> bool:
        return self.count == self.sequence.remaining


class Scheduler:
    def __init__(self, pool: PagePool, *, max_batch: int, max_batch_tokens: int) -> None:
        self.pool, self.max_batch, self.budget = pool, max_batch, max_batch_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []   # in order of admission
        self.preemptions = 0

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; empty when nothing is left to do."""
        decoding = [s for s in self.running if s.remaining == 1]
        chunks = [Chunk(s, 1) for s in decoding if s.pages and self._grow(s)]   # no pages: set back by one before it
        left = max(self.budget - len(chunks), PAGE)                             # prompts go on however many decode
        prompts = [s for s in self.running if s.remaining > 1]
        prompts += self._admit(left, prompts)
        return chunks + self._share(left, prompts)

    def _share(self, left: int, prompts: list[Sequence]) -> list[Chunk]:
        """Chunks of prompts in order of admission, `left` rows in all."""
        chunks: list[Chunk] = []
        echo_left = ECHO_ROWS
        oldest, others = prompts[:1], sorted(prompts[1:], key=lambda s: s.remaining)
        kept = sum(min(s.remaining, left // 2) for s in oldest)
        for sequence in [*others, *oldest]:
            most = left if sequence in oldest else left - kept
            if sequence.wants_prompt_logprobs:
                most = min(most, echo_left if sequence in oldest else echo_left // 2)
            count = min(sequence.remaining, most)
            if count:
                chunks.append(Chunk(sequence, count))
                left -= count
                echo_left -= count if sequence.wants_prompt_logprobs else 0
        return chunks

    def _grow(self, sequence: Sequence) -> bool:
        """A page for the sequence's newest token, taken from the youngest if need be. False when it was itself the youngest."""
        while len(sequence.pages) * PAGE < len(sequence.tokens):
            page = self.pool.take(1)
            if page is not None:
                sequence.pages += page
            else:
                victim = self.running[-1]
                self.preempt(victim)
                if victim is sequence:
                    return False
        return True

    def _admit(self, left: int, prompts: list[Sequence]) -> list[Sequence]:
        """Sequences from the head of the queue, as long as their pages are there and `prompts` leave rows for them. A long prompt counts
        as an eighth of the rows: those behind it may come in too."""
        admitted: list[Sequence] = []
        wanted = sum(min(s.remaining, left // 8 + 1) for s in prompts)
        while self.waiting and len(self.running) < self.max_batch and wanted < left:
            sequence = self.waiting[0]
            blocks = (len(sequence.tokens) - 1) // PAGE                 # the last token must be computed: its logits are wanted
            self.pool.names(sequence.tokens, sequence.names, blocks)
            found = [] if sequence.wants_prompt_logprobs else self.pool.find(sequence.names[:blocks])
            self.pool.hold(found)
            # Besides its own pages one for each that runs: a newcomer should not be set back in the very next steps.
            need = -(-len(sequence.tokens) // PAGE) - len(found)
            fits = need + len(self.running) <= self.pool.free or not self.running
            taken = self.pool.take(need) if fits else None
            if taken is None:
                self.pool.release(found)
                break
            self.waiting.popleft()
            sequence.pages = found + taken
            sequence.computed = len(found) * PAGE
            sequence.published = len(found)
            if not sequence.started:
                sequence.cached_tokens = sequence.computed
            sequence.started = True
            self.running.append(sequence)
            admitted.append(sequence)
            wanted += min(sequence.remaining, left // 8 + 1)
        return admitted

    def preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue with all its tokens and none of its pages."""
        self.running.remove(sequence)
        self._drop_pages(sequence)
        if not sequence.prefilled:
            sequence.prompt_logprobs.clear()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def advance(self, chunk: Chunk) -> None:
        """The chunk was computed: pages that are full now can be reused by others."""
        sequence = chunk.sequence
        sequence.computed += chunk.count
        full = sequence.computed // PAGE
        if full > sequence.published:
            self.pool.names(sequence.tokens, sequence.names, full)
            for index in range(sequence.published, full):
                self.pool.publish(sequence.pages[index], sequence.names[index])
            sequence.published = full

    def remove(self, sequence: Sequence, *, doubtful: bool = False) -> None:
        """Take a finished sequence out, wherever it is. `doubtful`: its pages must not be reused (not finite, failed step)."""
        if sequence in self.running:
            self.running.remove(sequence)
            if doubtful:
                self.pool.forget(sequence.pages)
            self._drop_pages(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _drop_pages(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.computed, sequence.published = [], 0, 0
