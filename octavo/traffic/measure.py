"""measure: one load on one server, from a first request that must succeed to a Result. The whole noun in one call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable
from typing import Any

from .client import Client
from .drive import Load, Recording, drive
from .facts import server_facts
from .launched import LaunchedServer
from .lengths import check
from .prompts import Prompts
from .result import Result
from .sample import Sample
from .service_level import ServiceLevel
from .target import Target

SPARE_FILES = 64  # of this process, beside its connections


def measure(target: Target, prompts: Prompts, load: Load, *, label: str = "", level: ServiceLevel | None = None, server: LaunchedServer | None = None,
            on_progress: Callable[[Recording], None] | None = None) -> Result:
    """Send `load` to `target` and return what came of it. Blocks until it is over.

    `server` is given where the server is a process of ours, so that its memory can be asked for. Raises OctavoError where the server does not answer a first
    request, which is asked alone, before the load; failures under load are counted instead (Summary.errors).
    """
    recording = asyncio.run(_run(target, prompts, load, on_progress))
    facts: dict[str, Any] = server_facts(target)
    if server is not None:
        facts["memory"] = server.memory() or facts.get("memory", {})
        facts["ready_seconds"] = round(server.ready_seconds, 3)
    return Result.of(label or str(load.arrivals), target, prompts, recording, level, facts)


async def _run(target: Target, prompts: Prompts, load: Load, on_progress: Callable[[Recording], None] | None) -> Recording:
    client, first = Client(target, prompts.ignore_end), Sample(-1, asyncio.get_running_loop().time())
    try:
        await client.ask(prompts[len(prompts) - 1], first)
        check(first, target)
        with _undisturbed():
            return await drive(client.ask, prompts, load, most=_connections(), patience=target.timeout, on_progress=on_progress)
    finally:
        client.close()


@contextlib.contextmanager
def _undisturbed() -> Any:
    """Without the garbage collector's pauses, which would be taken for the server's: a run makes no cycles worth the name."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def _connections() -> int:
    """How many connections this process may have open; raises its own limit as far as it may."""
    try:
        import resource
    except ImportError:                                  # Windows, which knows no such limit
        return 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        wanted = 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
            soft = max(soft, wanted)
    return max(soft - SPARE_FILES, 16)
