"""Ticket: a submitted request, from which its deltas are read, from a thread or from an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from .ended import Ended
from .request import Delta, Request

if TYPE_CHECKING:
    import asyncio


class Ticket:
    """Iterate it (`for` blocks, `async for` awaits) to get the deltas of all choices, interleaved as they come, until every choice has
    finished. Or `listen`, and `take` what is there. One reader at a time. A reader that leaves early calls `cancel()`.
    """

    def __init__(self, request: Request, id: str, cancel: Callable[[Ticket], None]) -> None:
        self.request, self.id = request, id
        self.ended: list[Ended] = []       # of the choices that have ended; complete once the last delta has been read
        self._cancel = cancel
        self._deltas: SimpleQueue[Delta] = SimpleQueue()
        self._open = request.n            # choices whose last delta has not been read
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: asyncio.Event | None = None
        self._notify: Callable[[], object] | None = None

    @property
    def done(self) -> bool:
        """Whether the last delta of every choice has been read."""
        return not self._open

    def cancel(self) -> None:
        """Stop computing; pages are freed before the next step. Unfinished choices end with Finish.CANCELLED. Thread-safe, idempotent."""
        self._cancel(self)

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        if not self._open:
            raise StopIteration
        return self._read(self._deltas.get())

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if not self._open:
            raise StopAsyncIteration
        if self._arrived is None:
            import asyncio  # who awaits has it already; who iterates starts without it

            self._arrived = asyncio.Event()
            self.listen(asyncio.get_running_loop(), self._arrived.set)
        while True:
            self._arrived.clear()
            try:
                return self._read(self._deltas.get_nowait())
            except Empty:
                await self._arrived.wait()

    def listen(self, loop: asyncio.AbstractEventLoop, notify: Callable[[], object]) -> None:
        """Call `notify` on `loop` whenever deltas have come from now on, once for all that came together."""
        self._notify = notify                     # before the loop: the engine looks at the loop first
        self._loop = loop

    def take(self) -> list[Delta]:
        """The deltas that are there, without waiting."""
        return [self._read(self._deltas.get_nowait()) for _ in range(self._deltas.qsize())]

    def _read(self, delta: Delta) -> Delta:
        if delta.finish is not None:
            self._open -= 1
        return delta

    def put(self, delta: Delta) -> None:
        """Engine thread: add a delta. An event loop that waits is woken by `wake`, once per step for all its tickets."""
        self._deltas.put(delta)


def wake(tickets: list[Ticket]) -> None:
    """Engine thread: wake the event loops that read these tickets; one call into each loop however many tickets it reads."""
    loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
    for ticket in tickets:
        if ticket._loop is not None:
            loops.setdefault(ticket._loop, []).append(ticket)
    for loop, theirs in loops.items():
        if not loop.is_closed():
            try:
                loop.call_soon_threadsafe(_arrive, theirs)
            except RuntimeError:  # the loop closed in between: nobody reads these tickets any more
                for ticket in theirs:
                    ticket.cancel()


def _arrive(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        if ticket._notify is not None:
            ticket._notify()
