"""Shadow checking: a sampled share of finished requests is scored again by the original's weights, and the loss on live traffic becomes a metric.

    request ends -> one of every 1/share is kept -> its last tokens through the original and through the served weights -> KL per answer token -> Drift

One thread of low priority does it. While the engine has nothing to do it costs nobody anything; while requests run it may take `budget` of the processor
time of all cores, and what it cannot get to is dropped and counted. Both models see the same window of at most CONTEXT tokens, so a request costs the same
however long it was. The served weights are those in use (a twin with kernels of its own), so damaged memory shows; the original is a second model in
memory, mapped from the cache where it can be.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.request import Finish
from ..engine.ticket import Ticket
from ..errors import OctavoError, UsageError
from ..machine import detect
from .drift import Drift

if TYPE_CHECKING:
    from ..engine import Engine
    from ..loading import LoadedModel

CONTEXT, SCORED = 64, 32  # tokens that both models see of a request, and how many of its answer at most are scored
WAITING = 4               # sampled requests that may wait; older ones would say less about now
SAVED = 1.0               # seconds of processor time that may be saved up
TURN = 0.05               # seconds between two looks whether there is time
NICE = 10                 # steps of priority below the engine: at 19 a full server would leave it 1.5% of a core at most, and a check takes half a second

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Raised by what is told to end because the server is to stop."""


@dataclass(frozen=True)
class Piece:
    """tokens: int32 [context]; the last `scored` of them are answer."""

    tokens: np.ndarray
    scored: int


class Shadow:
    def __init__(self, share: float, budget: float = 0.02) -> None:
        if not 0 < share <= 1:
            raise UsageError(f"must be above 0 and at most 1, not {share}", where="--shadow-share")
        if not 0 < budget <= 1:
            raise UsageError(f"must be above 0 and at most 1, not {budget}", where="--shadow-budget")
        self.share, self.budget = share, budget
        self.state = "waiting"       # waiting (for the model), loading, checking, stopped, or why it does not
        self._drift = Drift()
        self._ready: deque[Piece] = deque()
        self._news = threading.Event()
        self._due, self._place = 0.0, random.random()
        self._thread: threading.Thread | None = None
        self._begin: list[int] = []

    # -- event loop ------------------------------------------------------------------------------------------------------------

    def offer(self, tickets: Sequence[Ticket]) -> None:
        """Choices that have ended; one in every 1/share of those with an answer is kept, at a random place."""
        if self.state != "checking":
            return
        for one in (ended for ticket in tickets for ended in ticket.ended if ended.finish in (Finish.STOP, Finish.LENGTH) and ended.generated):
            self._due += self.share
            if self._due >= self._place:
                self._due, self._place = self._due - 1, random.random()
                if len(self._ready) >= WAITING:
                    self._drift.requests.add(1, "dropped")
                    continue
                self._ready.append(piece_of(one.tokens, one.prompt_tokens, self._begin))
                self._news.set()

    # -- thread ----------------------------------------------------------------------------------------------------------------

    def start(self, drift: Drift, original: Callable[[], LoadedModel], served: LoadedModel, engine: Engine, check: Callable[[], None]) -> None:
        """Load the original and score what is offered, until `check` raises."""
        self._drift = drift
        self._thread = threading.Thread(target=self._run, args=(original, served, engine, check), name="octavo-shadow", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._news.set()
            self._thread.join(seconds)

    def _run(self, load: Callable[[], LoadedModel], served: LoadedModel, engine: Engine, check: Callable[[], None]) -> None:
        from ..quality.divergence import Divergence
        from ..text.beginning import beginning

        with contextlib.suppress(OSError, AttributeError):  # where a thread has no priority of its own
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICE, 19))
        try:
            self.state = "loading"
            original, twin = load(), served.twin(1)
            if original.vocab_size != served.vocab_size:
                raise UsageError(f"the original has {original.vocab_size} tokens in its vocabulary, the model {served.vocab_size}", where="--against",
                                 remedy="name the model that this one was made of")
            self._begin = [int(token) for token in beginning(served.text)]
            allowance = Allowance(self.budget, engine)
            self.state = "checking"
            with Divergence(1) as divergence:
                while True:
                    self._news.wait(1.0)
                    self._news.clear()
                    check()
                    while self._ready:
                        self._score(self._ready.popleft(), original, twin, divergence, allowance, check)
        except Interrupted:
            self.state = "stopped"
        except OctavoError as error:
            self.state = f"not possible: {error}"
            log.warning("requests are not checked: %s", error)
        except Exception:  # whatever it is, the server serves; the log says what
            log.exception("shadow checking ended")
            self.state = "failed"

    def _score(self, piece: Piece, original: Any, served: Any, divergence: Any, allowance: Allowance, check: Callable[[], None]) -> None:
        from ..quality.perplexity import Windows, logits_of

        windows = Windows(piece.tokens[None, :], np.array([piece.scored]))
        truth = None
        try:
            for model in (original, served):
                allowance.wait(check)
                with allowance.spending(self._drift):
                    [(logits, targets)] = list(logits_of(model, windows))
                    if truth is None:
                        truth = logits
                        continue
                    rows = divergence(truth, logits, targets)
            self._drift.scored(rows.kl, float(rows.model.sum()), float(rows.original.sum()))
        except OctavoError:
            log.exception("a request could not be scored")
            self._drift.requests.add(1, "failed")


class Allowance:
    """Processor time that may be spent: any while the engine is idle, else a share of what all cores give."""

    def __init__(self, share: float, engine: Engine) -> None:
        self._engine, self._rate = engine, share * detect(None).cores
        self._credit, self._then = 0.0, time.monotonic()

    def wait(self, check: Callable[[], None]) -> None:
        """Return once there is time; `check` may raise."""
        while True:
            check()
            now = time.monotonic()
            self._credit = min(self._credit + (now - self._then) * self._rate, SAVED)
            self._then = now
            if self._engine.idle or self._credit > 0:
                return
            time.sleep(TURN)

    @contextlib.contextmanager
    def spending(self, drift: Drift) -> Any:
        """Count what this thread takes; charge it unless nobody wanted the processor."""
        began, idle = time.thread_time(), self._engine.idle
        yield
        spent = time.thread_time() - began
        drift.seconds.add(spent)
        if not (idle and self._engine.idle):
            self._credit -= spent


def piece_of(tokens: Sequence[int], prompt: int, begin: Sequence[int] = ()) -> Piece:
    """The end of a sequence; where its beginning is cut off, what every text of this model begins with comes before."""
    kept = tokens[-CONTEXT:] if len(tokens) <= CONTEXT else [*begin, *tokens[-(CONTEXT - len(begin)):]]
    scored = min(len(tokens) - max(prompt, 1), SCORED, len(kept) - 1)
    return Piece(np.array(kept, np.int32), scored)
