"""drive: sends the load and records what came of it. Knows no HTTP: it is given a function that asks one prompt.

In a run by time the load is kept up until the last request that counts has ended, so that no request that counts meets a server that is already emptying.
All times are those of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from .arrivals import Arrivals, Closed, Open
from .prompts import Prompt, Prompts
from .sample import Sample

Ask = Callable[[Prompt, Sample], Awaitable[None]]

PAUSE = 0.5       # seconds that a user of a closed loop waits after a failure, so that a server that refuses is not flooded
TICK = 0.05       # seconds between two looks at how late the event loop is
SLICE = 0.1       # seconds between two looks at whether all that count are done


@dataclass(frozen=True)
class Load:
    """What is sent, for how long."""

    arrivals: Arrivals
    duration: float | None = 60.0
    """Seconds that are measured, after the warm-up. None: `requests` says when it ends."""
    requests: int | None = None
    """Send so many and no more; all of them count, and there is no warm-up."""
    warmup: float = 0.0
    """Seconds of load before those that are measured."""

    def __post_init__(self) -> None:
        if (self.duration is None) == (self.requests is None):
            raise UsageError("give either how long or how many requests", where="load", remedy="--duration 60s, or --requests 1000")
        if self.duration is not None and self.duration <= 0:
            raise UsageError(f"must be above 0 seconds, not {self.duration:g}", where="--duration")
        if self.requests is not None and self.requests < 1:
            raise UsageError(f"must be above 0, not {self.requests}", where="--requests")
        if self.warmup < 0:
            raise UsageError(f"must be 0 seconds or more, not {self.warmup:g}", where="--warmup")


@dataclass
class Recording:
    """What was seen. Times of the event loop's clock."""

    load: Load
    samples: list[Sample] = field(default_factory=list)
    """All that were sent, those that do not count included (Sample.counted)."""
    began: float = 0.0
    ended: float = 0.0
    """The measured time: in a run by requests from the first one to the end of the last."""
    late: array[float] = field(default_factory=lambda: array("f"))
    """Seconds by which the event loop was late, at regular times: how wrong a stamp can be."""
    cpu_seconds: float = 0.0
    """Processor time of this process within the measured time, or as near to it as it was looked at."""

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def counted(self) -> list[Sample]:
        return [s for s in self.samples if s.counted]


class _Driver:
    def __init__(self, ask: Ask, prompts: Prompts, load: Load, most: int) -> None:
        self.ask, self.prompts, self.load = ask, prompts, load
        self.loop = asyncio.get_running_loop()
        self.recording = Recording(load)
        self.numbers = itertools.count()
        self.open: set[Sample] = set()                   # those that count and have not ended
        self.room = asyncio.Semaphore(most)
        start = self.loop.time()
        self.recording.began = start + load.warmup
        self.recording.ended = self.recording.began + load.duration if load.duration is not None else float("inf")
        self.start = start

    async def one(self, due: float) -> Sample | None:
        """Ask the next prompt; None when all were asked."""
        number = next(self.numbers)
        if self.load.requests is not None and number >= self.load.requests:
            return None
        sample = Sample(number, due, counted=self.recording.began <= due < self.recording.ended)
        self.recording.samples.append(sample)
        if sample.counted:
            self.open.add(sample)
        try:
            async with self.room:
                await self.ask(self.prompts[number], sample)
        finally:
            self.open.discard(sample)
            if sample.end != sample.end:                 # cancelled: nobody waits for it any longer
                sample.error, sample.end = sample.error or "unfinished", self.loop.time()
        return sample

    async def user(self, think: float, start: float) -> None:
        """One of a closed loop, who comes `start` seconds after the others."""
        await asyncio.sleep(start)
        due = self.start + start
        while (sample := await self.one(due)) is not None:
            wait = max(think, PAUSE if sample.error else 0.0)
            if wait:
                await asyncio.sleep(sample.end + wait - self.loop.time())
            due = sample.end + wait                      # when the user was ready, not when this client was

    async def schedule(self, arrivals: Open, group: set[asyncio.Task[Any]]) -> None:
        """An open loop: a task for each request, at its time or as soon after it as the event loop can."""
        for number, after in enumerate(arrivals.times()):
            if self.load.requests is not None and number >= self.load.requests:
                break
            due = self.start + after
            if (wait := due - self.loop.time()) > 0:
                await asyncio.sleep(wait)
            task = self.loop.create_task(self.one(due))
            group.add(task)
            task.add_done_callback(group.discard)
        while group:
            await asyncio.wait(group)

    async def ticks(self) -> None:
        """How late the loop is, and the processor time of the measured part."""
        cpu = None
        while True:
            due = self.loop.time() + TICK
            await asyncio.sleep(TICK)
            now = self.loop.time()
            if now >= self.recording.began:
                cpu = time.process_time() if cpu is None else cpu
                if now <= self.recording.ended:
                    self.recording.cpu_seconds = time.process_time() - cpu
                    self.recording.late.append(now - due)


async def drive(ask: Ask, prompts: Prompts, load: Load, *, most: int = 10_000, patience: float = 600.0,
                on_progress: Callable[[Recording], None] | None = None) -> Recording:
    """Send `load` through `ask` and return the recording.

    `ask(prompt, sample)` fills the sample and raises nothing. At most `most` requests are under way at once; further ones of an open loop wait, and their time
    counts. Requests that count and have not ended `patience` seconds after the measured time are given up, with the error "unfinished".
    `on_progress` sees the recording once a second.
    """
    driver = _Driver(ask, prompts, load, most)
    group: set[asyncio.Task[Any]] = set()
    arrivals = load.arrivals
    if isinstance(arrivals, Closed):
        # They come one by one in the first half of the warm-up: a hundred who ask at the same moment make a wave that goes on for long.
        each = load.warmup / 2 / arrivals.users
        senders = [driver.loop.create_task(driver.user(arrivals.think, number * each)) for number in range(arrivals.users)]
    else:
        senders = [driver.loop.create_task(driver.schedule(arrivals, group))]
    async with _beside(driver.ticks(), _tell(driver.recording, on_progress)):
        try:
            if load.requests is not None:
                await asyncio.gather(*senders)
                driver.recording.ended = max((s.end for s in driver.recording.samples), default=driver.recording.began)
            else:
                await asyncio.sleep(driver.recording.ended - driver.loop.time())
                end = driver.loop.time() + patience
                while driver.open and driver.loop.time() < end:
                    await asyncio.sleep(SLICE)
        finally:
            await _cancel([*senders, *group])
    return driver.recording


@contextlib.asynccontextmanager
async def _beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` for as long as the block lasts."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        yield
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel what has not ended; an error of what has is raised."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def _tell(recording: Recording, on_progress: Callable[[Recording], None] | None) -> None:
    while on_progress is not None:
        on_progress(recording)
        await asyncio.sleep(1.0)
