"""Sides: the servers that are measured one after the other; one that runs already, or one for each precision, started and stopped here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from ..traffic import (
    Arrivals,
    Closed,
    LaunchedServer,
    Load,
    Prompts,
    Recording,
    Result,
    ServiceLevel,
    Target,
    after,
    first_model,
    measure,
    random_tokens,
    read_prompts,
)
from .sweep import sweep

RANDOM_PROMPTS = 2000  # different ones; after that they repeat, and a prefix cache may know them
Tell = Callable[[str, Recording | None], None]


@dataclass(frozen=True)
class Wanted:
    """What is to be measured.

    target       without an address where servers are started here
    model        what they serve; None: the server at target.url
    precisions   of each server; the first is what the others are compared with; "" is what the model is stored in
    load         its arrivals are the most users of a sweep
    file         of prompts; None: random words of prompt_tokens, answered with answer_tokens
    ignore_end   answers of exactly as many tokens as asked; None: only of random words
    runs         how often each is measured, every time on a server just started where it is started here
    """

    target: Target
    load: Load
    model: str | None = None
    precisions: tuple[str, ...] = ("",)
    serve: tuple[str, ...] = ()
    file: Path | None = None
    prompt_tokens: int = 512
    answer_tokens: int = 128
    ignore_end: bool | None = None
    seed: int = 0
    level: ServiceLevel | None = None
    sweeping: bool = False
    quality: bool = True
    runs: int = 1

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "answer_tokens", "runs"):
            if getattr(self, name) < 1:
                raise UsageError(f"must be above 0, not {getattr(self, name)}", where=name.replace("_", "-"))
        if self.sweeping and not isinstance(self.load.arrivals, Closed):
            raise UsageError("a sweep raises the number of users; it has no rate", where="--sweep --rate", remedy="leave one of them out")


def measure_sides(wanted: Wanted, tell: Tell = lambda what, recording: None) -> Iterator[Result]:
    """The results as they come. `tell(what, recording)` hears what is being done; the recording grows, None while a server starts."""
    asked = 0                                            # of a server that runs on, whose prefix cache knows them now
    known = read_prompts(wanted.file, wanted.answer_tokens, seed=wanted.seed) if wanted.file is not None else None
    for turn in range(wanted.runs):                      # in turns, so that what changes about the machine changes for all
        for precision in wanted.precisions:
            label = precision or "as stored"
            what = label if wanted.model is not None else wanted.target.url
            what += f", run {turn + 1} of {wanted.runs}" if wanted.runs > 1 else ""
            tell(f"{what}: starting" if wanted.model is not None else what, None)
            with _server(wanted, precision) as server:
                target = replace(wanted.target, url=server.url, timeout=wanted.target.timeout) if server is not None else wanted.target
                target = replace(target, model=target.model or first_model(target))
                prompts = _prompts(wanted, target, known)
                known = prompts                          # all sides of a model are asked the same
                for result in _results(wanted, target, after(prompts, asked), server, label if server is not None else target.model, what, tell):
                    asked += result.prompts["asked"] + 1 if server is None else 0
                    yield result


def _results(wanted: Wanted, target: Target, prompts: Prompts, server: LaunchedServer | None, label: str, what: str, tell: Tell) -> Iterator[Result]:
    asked = 0

    def one(arrivals: Arrivals) -> Result:
        nonlocal asked
        load = replace(wanted.load, arrivals=arrivals)
        told = f"{what}: {arrivals}" if wanted.sweeping else what
        name = f"{label}, {arrivals}" if wanted.sweeping else label
        result = measure(target, after(prompts, asked), load, label=name, level=wanted.level, server=server,
                         on_progress=lambda recording: tell(told, recording))
        asked += result.prompts["asked"] + 1             # and the first one, which is asked alone
        return result

    if wanted.sweeping:
        assert isinstance(wanted.load.arrivals, Closed)
        yield from sweep(one, wanted.load.arrivals)
    else:
        yield one(wanted.load.arrivals)


@contextlib.contextmanager
def _server(wanted: Wanted, precision: str) -> Iterator[LaunchedServer | None]:
    """A server of this precision, ready; None where one runs already."""
    if wanted.model is None:
        yield None
        return
    # The receipt is measured before the server is ready, or not at all: measured in the background, it would take time from the requests.
    options = ["--receipt", "before" if wanted.quality else "off", *(("--quantization", precision) if precision else ()), *wanted.serve]
    if wanted.target.api_key:
        options += ["--api-key", wanted.target.api_key]
    with LaunchedServer(wanted.model, options) as server:
        yield server


def _prompts(wanted: Wanted, target: Target, known: Prompts | None) -> Prompts:
    found = known or random_tokens(target, wanted.prompt_tokens, wanted.answer_tokens, RANDOM_PROMPTS, wanted.seed)
    return replace(found, ignore_end=wanted.ignore_end) if wanted.ignore_end is not None else found
