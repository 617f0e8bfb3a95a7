"""Between HTTP and the engine: submitting, reading the deltas of one or several tickets, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

from fastapi import Request as HttpRequest
from starlette.types import Receive

from ..engine.request import Delta, Finish, Request
from ..engine.ticket import Ticket
from ..errors import RequestError
from .identity import current
from .problems import Problem, of_error, unavailable
from .service import Live

log = logging.getLogger(__name__)
T = TypeVar("T")

CLIENT_GONE = 499  # nginx's status for it; nobody sees it but the metrics


def submit(live: Live, requests: Sequence[Request], *, param: str, grammar_param: str = "response_format") -> list[Ticket]:
    """Submit all or none. Blocks while a grammar compiles, so call it in a worker thread. Raises Problem."""
    tickets: list[Ticket] = []
    identity = current()
    try:
        for place, request in enumerate(requests):
            if identity is not None:
                request = replace(request, id=identity.id if place == 0 else f"{identity.id}.{place}")
            tickets.append(live.engine.submit(request))
    except RequestError as error:
        cancel(tickets)
        problem = of_error(error, param)
        if problem.param == "prompt":
            problem.param = param
        elif problem.param == "response_format":
            problem.param = grammar_param
        raise problem from None
    if identity is not None:
        identity.tickets += tickets
    return tickets


def cancel(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.cancel()


async def deltas(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Delta]]:
    """(index of the ticket, delta) as they come, until every choice of every ticket has finished."""
    if len(tickets) == 1:
        async for only in tickets[0]:
            yield 0, only
        return
    queue: asyncio.Queue[tuple[int, Delta | None]] = asyncio.Queue()

    async def pump(index: int, ticket: Ticket) -> None:
        async for delta in ticket:
            queue.put_nowait((index, delta))
        queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, ticket)) for index, ticket in enumerate(tickets)]
    try:
        left = len(tasks)
        while left:
            index, delta = await queue.get()
            if delta is None:
                left -= 1
            else:
                yield index, delta
    finally:
        for task in tasks:
            task.cancel()


def failure(delta: Delta) -> Problem | None:
    """The Problem that ended a choice, if one did."""
    if delta.finish is Finish.TIMEOUT:
        return Problem(504, "The request took longer than it may.", type="server_error", code="timeout")
    if delta.finish is Finish.ERROR:
        log.error("a choice ended with an error: %s", delta.error)
        return Problem(500, f"The model failed: {delta.error}", type="server_error", code="generation_failed")
    if delta.finish is Finish.CANCELLED:
        return unavailable("the server is shutting down", "stopping")
    return None


def finish_reason(delta: Delta, *, called: bool = False) -> str | None:
    if delta.finish is None:
        return None
    return "tool_calls" if called and delta.finish is Finish.STOP else delta.finish.value


async def unless_gone(http: HttpRequest, work: Awaitable[T], tickets: Sequence[Ticket]) -> T:
    """The result of `work`; when the client leaves first, the tickets are cancelled and Problem 499 is raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnect(http.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Problem(CLIENT_GONE, "the client has gone")
    finally:
        gone.cancel()
        if not task.done() or task.cancelled() or task.exception() is not None:
            task.cancel()
            cancel(tickets)


async def disconnect(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
