"""Engine: one thread that turns requests into tokens, step by step.

    submit -> inbox -> Scheduler.plan -> Runner.forward -> Sampler -> Output -> Ticket
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

import numpy as np

from ..cache import PAGE, KVPool
from ..errors import PromptTooLongError, QueueFullError, RequestError, StoppingError
from ..telemetry import EngineTelemetry
from .burst import Chooser, Pace, takes_raw
from .ended import note_end
from .grammar import GrammarCompiler
from .options import EngineOptions
from .output import Output
from .pages import PagePool
from .request import Delta, Finish, Request, TokenLogprob
from .runner import Runner
from .sampler import Sampler, Workspace, draw, make_drawer, token_logprob
from .scheduler import Chunk, Scheduler
from .sequence import Sequence
from .ticket import Ticket, wake
from .validation import check

if TYPE_CHECKING:
    from ..loading import LoadedModel

log = logging.getLogger(__name__)
NO_ROW = np.empty(0, np.float32)


class Engine:
    """Serves one loaded model. `submit` and `cancel` may be called from any thread; everything else happens in the engine's own."""

    def __init__(self, loaded: LoadedModel, options: EngineOptions | None = None) -> None:
        self.loaded, self.options = loaded, options or EngineOptions()
        self.max_model_len = min(self.options.max_model_len or loaded.max_model_len, loaded.max_model_len)
        page_bytes = KVPool.bytes_per_page(loaded.kv_heads, loaded.head_dims, loaded.cache_spec)
        backend = getattr(loaded, "backend", None)
        pages = self.options.pool_pages(page_bytes, self.max_model_len, on_device=backend.memory() if backend is not None else None)
        self.max_model_len = min(self.max_model_len, pages * PAGE)
        self.kv_pages = pages
        self.kv_bytes = pages * page_bytes
        self.telemetry = EngineTelemetry()
        o = self.options
        self._pool = PagePool(pages, reuse=o.prefix_cache, most_cached=o.cached_pages, salt=repr(loaded.cache_spec))
        self._runner = Runner(loaded, loaded.new_pool(pages))
        self._scheduler = Scheduler(self._pool, max_batch=o.max_batch, max_batch_tokens=o.max_batch_tokens, copy=self._runner.copy)
        self._end_ids = tuple(sorted(set(loaded.eos_token_ids)))
        self._grammars = GrammarCompiler(loaded.text, loaded.vocab_size, self._end_ids)
        self._work = Workspace(loaded.vocab_size)
        self._drawer = make_drawer(backend)
        self._lock = threading.Lock()
        self._inbox: deque[Sequence] = deque()
        self._queued = 0                                  # choices between submission and first admission
        self._cancels: deque[Ticket] = deque()
        self._live: dict[Ticket, list[Sequence]] = {}
        self._touched: dict[Ticket, None] = {}            # tickets that got a delta in this step
        self._made = 0                                    # tokens of this step
        self._gaps: dict[float, int] = {}                 # time of their last token -> how many choices got one now
        self._now = 0.0                                   # when the tokens of this step were known
        self._wakeup = threading.Event()
        self._stopping = self._halt = False
        self._thread: threading.Thread | None = None
        self._counter = 0
        self._pace = 0.1                                  # seconds between two finished choices, smoothed
        self._last_finish = time.monotonic()
        self._deadlines = False
        self._burst_pace = Pace(o.burst(backend is not None and backend.memory() is not None))
        self.telemetry.pages_total.set(pages)
        self._measure()

    # -- any thread ------------------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the engine thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
            self._thread.start()
        return self

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Refuse new requests, finish what is there for up to `drain_seconds`, cancel the rest, end the thread."""
        with self._lock:
            self._stopping = True                         # after this no request gets in
        if self._thread is not None:
            self._wakeup.set()
            self._thread.join(max(drain_seconds, 0.0))
            self._halt = True
            self._wakeup.set()
            self._thread.join()
            self._thread = None
        else:
            self._end_all()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Raises RequestError (400), PromptTooLongError, QueueFullError (429), StoppingError (503).

        A request with a grammar compiles it here, in the caller's thread (up to a second for a large schema): an event loop should call
        `submit` in a worker thread then.
        """
        try:
            check(request, vocabulary=self.loaded.vocab_size, max_model_len=self.max_model_len, max_choices=self.options.max_choices)
            grammar = request.sampling.grammar
            grammars = [self._grammars.compile(grammar) if grammar else None for _ in range(request.n)]
        except PromptTooLongError as error:
            raise self._refuse("too_long", error) from None
        except RequestError as error:
            raise self._refuse("invalid", error) from None
        now = time.monotonic()
        timeout = request.timeout if request.timeout is not None else self.options.request_timeout
        seed = request.sampling.seed if request.sampling.seed is not None else int.from_bytes(os.urandom(8), "little")
        with self._lock:
            if self._stopping:
                raise self._refuse("stopping", StoppingError("the server is shutting down"))
            if self._queued + request.n > self.options.max_queue:
                wait = min(max(self._pace * self._queued / 2, 1.0), 60.0)
                raise self._refuse("queue_full", QueueFullError(f"{self._queued} requests are waiting already", retry_after=wait))
            self._queued += request.n
            self._counter += 1
            ticket = Ticket(request, request.id or f"request-{self._counter}", self._cancel)
            wanted = request.sampling.max_tokens
            limit = self.max_model_len if wanted is None else min(self.max_model_len, len(request.prompt) + wanted)
            choices = [
                Sequence(
                    ticket=ticket, choice=choice, tokens=list(request.prompt), prompt_length=len(request.prompt), limit=limit,
                    sampler=Sampler(request.sampling, seed=seed, choice=choice, prompt=request.prompt,
                                    end_ids=self._ends(request), vocabulary=self.loaded.vocab_size, work=self._work),
                    output=Output(request.sampling, self.loaded.text.stream(continued=True), frozenset(self._end_ids)),
                    grammar=grammars[choice], submitted=now, deadline=now + timeout if timeout is not None else float("inf"),
                )
                for choice in range(request.n)
            ]
            choices[0].siblings = choices[1:]
            self._inbox.extend(choices[:1])
            self._live[ticket] = choices
        self._wakeup.set()
        return ticket

    def _ends(self, request: Request) -> tuple[int, ...]:
        """Tokens that min_tokens forbids at first."""
        return (*(() if request.sampling.ignore_eos else self._end_ids), *request.sampling.stop_token_ids)

    def _refuse(self, reason: str, error: RequestError) -> RequestError:
        self.telemetry.errors.add(1, reason)
        return error

    def _cancel(self, ticket: Ticket) -> None:
        self._cancels.append(ticket)
        self._wakeup.set()

    @property
    def idle(self) -> bool:
        return not self._live

    # -- engine thread ---------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._halt:
            worked = self.step()
            if not worked:
                if self._stopping and not self._live:
                    return
                self._wakeup.wait(timeout=0.05 if self._deadlines and self._live else None)
                self._wakeup.clear()
        self._end_all()

    def _end_all(self) -> None:
        for sequences in list(self._live.values()):
            for sequence in sequences:
                self._finish(sequence, Finish.CANCELLED, error="the server was stopped")
        self._deliver()
        self._measure()

    def step(self) -> bool:
        """One turn: take what came in, compute one step, hand out tokens. False when there was nothing to compute."""
        began = time.perf_counter()
        self._take_inbox()
        chunks: list[Chunk] = []
        steps = 1
        try:
            chunks = self._scheduler.plan()
            if chunks:
                steps = self._steps(chunks)
                if steps > 1:
                    steps = self._compute_burst(chunks, steps)
                else:
                    self._compute(chunks)
        except Exception as error:  # whatever a kernel raises must not end the server; those it hit are told
            log.exception("a step failed")
            self.telemetry.step_failures.add()
            for sequence in [c.sequence for c in chunks] or [*self._scheduler.running, *list(self._scheduler.waiting)[:1]]:
                self._finish(sequence, Finish.ERROR, error=f"the step failed: {type(error).__name__}: {error}", kind="step_failed",
                             doubtful=True)
        self._deliver()
        if chunks:
            self.telemetry.steps.add(steps)
            self.telemetry.batch_size.observe(len(chunks), steps)
            self.telemetry.step_seconds.observe((time.perf_counter() - began) / steps, steps)
        self._measure()
        return bool(chunks)

    def _take_inbox(self) -> None:
        while self._inbox:
            sequence = self._inbox.popleft()
            self._deadlines |= sequence.deadline < float("inf")
            self._scheduler.waiting.append(sequence)
        while self._cancels:
            for sequence in list(self._live.get(self._cancels.popleft(), ())):
                self.telemetry.cancellations.add(0 if sequence.finished else 1)
                self._finish(sequence, Finish.CANCELLED)
        if self._deadlines:
            now = time.monotonic()
            for sequences in list(self._live.values()):
                for sequence in [s for s in sequences if s.deadline <= now]:
                    self._finish(sequence, Finish.TIMEOUT, kind="timeout")

    def _compute(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if not chunk.sequence.counted:
                self._note_admission(chunk.sequence)
        began = time.perf_counter()
        logits, owned = self._runner.forward(chunks)
        best, top = self.loaded.best(logits)
        seconds = time.perf_counter() - began
        self.telemetry.forward_seconds.observe(seconds)
        self._burst_pace.saw(len(chunks) if len(logits) == len(chunks) else 0, 1, seconds)
        self._now = now = time.monotonic()
        sound = np.isfinite(top)                              # a NaN counts as the largest, so this tells whether the whole row is sound
        all_sound, tokens = bool(sound.all()), best.tolist()
        self._gaps.clear()
        self._made = 0
        ready: list[tuple[Sequence, int]] = []                # whose next token is due, and from which row
        for chunk, rows in zip(chunks, owned, strict=True):
            sequence = chunk.sequence
            if not all_sound and not sound[rows].all():
                self.telemetry.nan_failures.add()
                self._finish(sequence, Finish.ERROR, error="the model's output is not a number", kind="nan", doubtful=True)
                continue
            if sequence.wants_prompt_logprobs:
                self._score_prompt(chunk, logits[rows])
            self._scheduler.advance(chunk)
            if sequence.remaining == 0:
                if not sequence.prefilled:
                    self._prefilled(sequence)
                if sequence.limit <= sequence.prompt_length:
                    self._finish(sequence, Finish.LENGTH)     # max_tokens = 0: only the prompt was wanted
                else:
                    ready.append((sequence, rows.stop - 1))
        raw = [s.grammar is None and s.sampler.raw(s.generated) for s, _ in ready]
        draws = [(s.sampler, row, s.generated) for (s, row), plain in zip(ready, raw, strict=True) if plain and not s.sampler.greedy]
        drawn = iter(draw(self._drawer, logits, draws) if draws else ())
        for (sequence, row), plain in zip(ready, raw, strict=True):
            token = None if not plain else tokens[row] if sequence.sampler.greedy else next(drawn)
            wanted = token is None or sequence.sampling.logprobs is not None   # rows of a GPU's logits are copied when they are read
            self._sample(sequence, logits[row] if wanted else NO_ROW, token, now)
        self._hand_in_counts()

    def _steps(self, chunks: list[Chunk]) -> int:
        """How many steps to compute before anything else is done."""
        most = self._burst_pace.steps(len(chunks))
        if most < 2 or self._inbox or not all(chunk.sequence.counted and chunk.sequence.prefilled and takes_raw(chunk) for chunk in chunks):
            return 1
        return self._scheduler.ahead(chunks, most)

    def _compute_burst(self, chunks: list[Chunk], steps: int) -> int:
        """Computes up to `steps` steps; how many it were."""
        began = time.perf_counter()
        chooser = Chooser(self.loaded, self._drawer, chunks)
        self._runner.burst(chunks, steps, chooser)
        seconds = time.perf_counter() - began
        self._now, steps = time.monotonic(), 0
        self._gaps.clear()
        self._made = 0
        for tokens, sound in chooser.steps():
            steps += 1
            if chooser.arriving:
                seconds, self._now = time.perf_counter() - began, time.monotonic()
            for chunk, token, good in zip(chunks, tokens.tolist(), sound.tolist(), strict=True):
                sequence = chunk.sequence
                if sequence.finished:
                    continue                                  # computed in vain: it ended before
                if not good:
                    self.telemetry.nan_failures.add()
                    self._finish(sequence, Finish.ERROR, error="the model's output is not a number", kind="nan", doubtful=True)
                    continue
                self._scheduler.advance(chunk)
                self._sample(sequence, NO_ROW, token, self._now)
            if chooser.arriving:                              # handed out while the device computes the next ones
                self._hand_in_counts()
                self._deliver()
        self.telemetry.forward_seconds.observe(seconds / steps, steps)
        self._burst_pace.saw(len(chunks), steps, seconds)
        self._hand_in_counts()
        return steps

    def _hand_in_counts(self) -> None:
        self.telemetry.generated_tokens.add(self._made)
        for before, times in self._gaps.items():
            self.telemetry.token_gap_seconds.observe(self._now - before, times)
        self._gaps.clear()
        self._made = 0

    def _sample(self, sequence: Sequence, row: np.ndarray, token: int | None, now: float) -> None:
        """Draw the next token where it is not known, append it, and hand out what it makes certain. `row`: its logits, or NO_ROW
        where the token is known and nothing else is wanted."""
        index, sampler, output, grammar = sequence.generated, sequence.sampler, sequence.output, sequence.grammar
        done = False
        try:
            if grammar is None:
                token = sampler.draw(row, index) if token is None else token
            else:
                token = sampler.draw(row, index, grammar.allowed())
                done = grammar.accept(token)
        except RequestError as error:
            self._finish(sequence, Finish.ERROR, error=str(error), kind="grammar")
            return
        sampler.accept(token)
        sequence.tokens.append(token)
        text = output.push(token, index + 1)
        if index == 0:
            sequence.first_token = now
            self.telemetry.first_token_seconds.observe(now - sequence.submitted)
        else:
            self._gaps[sequence.last_token] = self._gaps.get(sequence.last_token, 0) + 1
        sequence.last_token = now
        self._made += 1
        top = sequence.sampling.logprobs
        logprobs = () if top is None else (token_logprob(row, token, top, self._work),)
        finish = output.finish
        if finish is None and (done or len(sequence.tokens) >= sequence.limit):
            text += output.flush()
            finish = output.finish or (Finish.STOP if done else Finish.LENGTH)
        if finish is None:
            self._put(sequence, Delta(sequence.choice, text, (token,), logprobs))
        else:
            self._finish(sequence, finish, text=text, tokens=(token,), logprobs=logprobs)

    def _score_prompt(self, chunk: Chunk, logits: np.ndarray) -> None:
        """Row i of `logits` belongs to prompt token `computed + i` and predicts the next one."""
        sequence, top = chunk.sequence, chunk.sequence.sampling.logprobs or 0
        if not sequence.prompt_logprobs:
            sequence.prompt_logprobs.append(None)             # nothing predicts the first token
        for offset, row in enumerate(logits):
            following = sequence.computed + offset + 1
            if following < sequence.prompt_length:
                sequence.prompt_logprobs.append(token_logprob(row, sequence.tokens[following], top, self._work))

    def _note_admission(self, sequence: Sequence) -> None:
        sequence.counted = True
        with self._lock:
            self._queued -= 1
        sequence.admitted = time.monotonic()
        t = self.telemetry
        t.queue_seconds.observe(sequence.admitted - sequence.submitted)
        t.prompt_tokens.add(sequence.prompt_length)
        if self.options.prefix_cache:
            t.looked_up_tokens.add(sequence.prompt_length)
            t.cached_tokens.add(sequence.cached_tokens)

    def _prefilled(self, sequence: Sequence) -> None:
        """The prompt's pages can be shared now: let the other choices of the request follow, before anyone else."""
        sequence.prefilled = True
        for sibling in reversed(sequence.siblings):
            sibling.prompt_logprobs = sequence.prompt_logprobs
            self._scheduler.waiting.appendleft(sibling)
        sequence.siblings = []

    def _finish(self, sequence: Sequence, finish: Finish, *, text: str | None = None, tokens: tuple[int, ...] = (),
                logprobs: tuple[TokenLogprob, ...] = (), error: str | None = None, kind: str = "", doubtful: bool = False) -> None:
        """End a choice: its pages are free at once, its last delta is on its way. kind: under what it counts as an error."""
        if sequence.finished:
            return
        sequence.finished = True
        if kind:
            self.telemetry.errors.add(1, kind)
        if not sequence.counted:
            sequence.counted = True
            with self._lock:
                self._queued -= 1
        self._scheduler.remove(sequence, doubtful=doubtful)
        if sequence.siblings:
            self._prefilled(sequence)                         # it ends early; the others must go on without its pages
        if text is None:
            text = sequence.output.flush() if finish is not Finish.ERROR else ""
        now = time.monotonic()
        note_end(sequence, finish, now, self.telemetry)       # before its last delta: whoever reads that may look for the end,
        self._hand_in_counts()                                # for its tokens,
        self._measure()                                       # and for the room it left
        self._put(sequence, Delta(sequence.choice, text, tokens, logprobs, finish, sequence.output.reason, error))
        self._pace += 0.1 * (min(now - self._last_finish, 5.0) - self._pace)
        self._last_finish = now
        with self._lock:
            if all(s.finished for s in self._live[sequence.ticket]):
                del self._live[sequence.ticket]

    def _put(self, sequence: Sequence, delta: Delta) -> None:
        if not sequence.opened:
            sequence.opened = True
            delta = delta._replace(cached_tokens=sequence.cached_tokens, prompt_logprobs=tuple(sequence.prompt_logprobs))
        sequence.ticket.put(delta)
        self._touched[sequence.ticket] = None

    def _deliver(self) -> None:
        if self._touched:
            wake(list(self._touched))
            self._touched.clear()

    def _measure(self) -> None:
        t, pool = self.telemetry, self._pool
        t.queued.set(self._queued)
        t.running.set(len(self._scheduler.running))
        t.pages_used.set(pool.used)
        t.cache_usage.set(pool.used / self.kv_pages)
        t.pages_cached.set(pool.cached)
        t.pages_free.set(pool.free - pool.cached)
        t.preemptions.values[""] = self._scheduler.preemptions
