"""ASGI middleware before the endpoints: counting and naming requests, the API key, the size and pace of bodies.

Plain ASGI, because a middleware of FastAPI's own kind would stand between an endpoint and its client's disconnect.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .identity import HEADER, enter
from .logs import log_request
from .problems import Problem
from .site import FILES

if TYPE_CHECKING:
    from .service import Service

OPEN_PATHS = frozenset({"/health"})
METRICS = frozenset({"/metrics", "/v1/figures"})


class Count:
    """Gives each request its id, returns that in the header x-request-id, and once the request has ended counts, logs and traces it."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.http, self.service = app, service.http, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 499   # what stays when the client leaves before an answer
        self.http.open += 1
        headers, method, tracing = Headers(scope=scope), scope["method"], self.service.tracing
        identity = enter(headers.get(HEADER, ""))
        name = (HEADER.encode(), identity.id.encode())
        span = tracing.begin(identity, headers, method) if tracing is not None else None

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), name]}
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            status = 500   # the answer is made outside of this
            raise
        finally:
            self.http.open -= 1
            # The route's pattern, not the path: a label must not take values that clients choose.
            route, seconds = getattr(scope.get("route"), "path", "other"), time.perf_counter() - began
            self.http.count(route, status, seconds)
            log_request(identity, method, route, status, seconds)
            if tracing is not None:
                tracing.end(span, identity, method, route, status)
            self.service.ended(identity)


class Guard:
    """Checks the key, then hands bodies on as long as they stay within size and time."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.options = app, service.options
        self.key = self.options.api_key.encode() if self.options.api_key is not None else None
        self.open_paths = OPEN_PATHS.union(() if self.options.protect_metrics else METRICS, FILES if self.options.page else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        problem = self._refusal(scope["path"], headers)
        if problem is not None:
            return await problem.response()(scope, receive, send)
        await self.app(scope, self._bounded(receive), send)

    def _refusal(self, path: str, headers: Headers) -> Problem | None:
        if self.key is not None and path not in self.open_paths:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if not given:
                return Problem(401, "You didn't provide an API key: send it in the header Authorization: Bearer KEY.", code="missing_api_key",
                               headers={"WWW-Authenticate": "Bearer"})
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.key):
                return Problem(401, "Incorrect API key provided.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self.options.max_body_bytes:
            return self._too_large()
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """Counts while it reads: a body without a length must not get far either."""
        size, whole = 0, False
        loop = asyncio.get_running_loop()
        end = loop.time() + self.options.body_timeout

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()  # from here on only the disconnect can come
            try:
                message = await asyncio.wait_for(receive(), max(end - loop.time(), 0))
            except TimeoutError:
                raise Problem(408, f"The body did not arrive within {self.options.body_timeout:g} s.", code="request_timeout",
                              headers={"Connection": "close"}) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self.options.max_body_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Problem:
        return Problem(413, f"The body is larger than {self.options.max_body_bytes} bytes.", code="body_too_large", headers={"Connection": "close"})

