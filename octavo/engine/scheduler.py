"""Who computes what in the next step: continuous batching with chunked prompts.

Every step: first one row for each sequence that decodes; then prompts share what is left of the row budget. Admission is in order of
arrival. The oldest prompt is sure of half the rows, so every prompt gets done; the others go shortest first, so a short one is not
stuck behind a long one and the mean time to the first token is short. A prompt that begins like one that is just being computed waits for its pages
instead of computing them a second time; those behind it go on. Pages for all tokens of a sequence are taken when it is admitted
and one at a time as it grows; when none is left the sequence admitted last is set back to the head of the queue and later recomputed
from its tokens, to the same text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..cache import PAGE
from .pages import PagePool
from .sequence import Sequence

WORTH = 4  # tokens in common with a page for which its copy is cheaper than computing them
ECHO_ROWS = 128  # rows of a step whose logits are all kept because a prompt's log probabilities are wanted: 128 x 50,000 floats = 26 MB


class Chunk:
    """`count` tokens of a sequence, from its `computed` on."""

    __slots__ = ("count", "sequence")

    def __init__(self, sequence: Sequence, count: int) -> None:
        self.sequence, self.count = sequence, count

    @property
    def samples(self) -> bool:
        return self.count == self.sequence.remaining


class Scheduler:
    def __init__(self, pool: PagePool, *, max_batch: int, max_batch_tokens: int, copy: Callable[[int, int], None]) -> None:
        """`copy(source, target)` copies the content of a page at once."""
        self.pool, self.max_batch, self.budget, self._copy = pool, max_batch, max_batch_tokens, copy
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []   # in order of admission
        self.preemptions = 0

    def plan(self) -> list[Chunk]:
        """The chunks of the next step; empty when nothing is left to do."""
        decoding = [s for s in self.running if len(s.tokens) - s.computed == 1]
        chunks = [Chunk(s, 1) for s in decoding if s.pages and self._grow(s)]   # no pages: set back by one before it
        left = max(self.budget - len(chunks), PAGE)                             # prompts go on however many decode
        prompts = [s for s in self.running if s.remaining > 1]
        prompts += self._admit(left, prompts)
        return chunks + self._share(left, prompts)

    def ahead(self, chunks: list[Chunk], most: int) -> int:
        """How many steps these chunks, one decoded token each, may run without another look at the queue: 1 to `most`. Takes the pages for them."""
        if self.waiting or len(chunks) != len(self.running) or not all(chunk.count == chunk.sequence.remaining == 1 for chunk in chunks):
            return 1
        steps = min(most, *(chunk.sequence.limit - len(chunk.sequence.tokens) for chunk in chunks))
        if steps < 2:
            return 1
        missing = [max(0, -(-(len(chunk.sequence.tokens) + steps - 1) // PAGE) - len(chunk.sequence.pages)) for chunk in chunks]
        if sum(missing) > self.pool.free:
            return 1
        for chunk, count in zip(chunks, missing, strict=True):
            chunk.sequence.pages += self.pool.take(count) or []
        return steps

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
        coming = {name for s in prompts for name in s.names[s.published :]} if self.pool.reuse else set()
        place = 0                                                       # in the queue; those before it wait for pages of `coming`
        while place < len(self.waiting) and len(self.running) < self.max_batch and wanted < left:
            sequence = self.waiting[place]
            blocks = (len(sequence.tokens) - 1) // PAGE                 # the last token must be computed: its logits are wanted
            self.pool.names(sequence.tokens, sequence.names, blocks)
            found = [] if sequence.wants_prompt_logprobs else self.pool.find(sequence.names[:blocks])
            if len(found) < blocks and sequence.names[len(found)] in coming and not sequence.wants_prompt_logprobs:
                place += 1
                continue
            if not self._place(sequence, found):
                break
            del self.waiting[place]
            self.running.append(sequence)
            admitted.append(sequence)
            wanted += min(sequence.remaining, left // 8 + 1)
            if self.pool.reuse:
                coming.update(sequence.names[sequence.published : blocks])
        return admitted

    def _place(self, sequence: Sequence, found: list[int]) -> bool:
        """Give a sequence the pages `found` for its beginning, and new ones for the rest. False, and nothing is done, when there are too few."""
        self.pool.hold(found)
        # Besides its own pages one for each that runs: a newcomer should not be set back in the very next steps.
        need = -(-len(sequence.tokens) // PAGE) - len(found)
        if need + len(self.running) > self.pool.free and (self.running or need > self.pool.free):
            self.pool.release(found)
            return False
        sequence.computed = start = len(found) * PAGE
        source, common = -1, 0
        if not sequence.wants_prompt_logprobs and need < self.pool.free:     # the page that is copied must not be the one that is taken
            before = sequence.names[len(found) - 1] if found else None
            source, common = self.pool.alike(before, sequence.tokens[start : min(start + PAGE, len(sequence.tokens) - 1)])
        if common >= WORTH:
            self.pool.hold([source])
        taken = self.pool.take(need)
        assert taken is not None
        if common >= WORTH:
            self._copy(source, taken[0])
            self.pool.release([source])
            sequence.computed += common
        sequence.pages = found + taken
        sequence.published = len(found)
        if not sequence.started:
            sequence.cached_tokens = sequence.computed
        sequence.started = True
        return True

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
                before = sequence.names[index - 1] if index else None
                self.pool.publish(sequence.pages[index], sequence.names[index], before, sequence.tokens[index * PAGE : (index + 1) * PAGE])
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
        sequence.pages, sequence.computed, sequence.published, sequence.tabled = [], 0, 0, 0
