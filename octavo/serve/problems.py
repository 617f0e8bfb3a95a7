"""What goes wrong, in OpenAI's shape: {"error": {"message", "type", "param", "code"}} with the matching HTTP status."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException

from ..errors import OctavoError, PromptTooLongError, QueueFullError, RequestError, StoppingError
from .identity import HEADER, current

log = logging.getLogger(__name__)


class Problem(HTTPException):
    """A request that ends with an error. `param` is the field at fault, `code` a word that programs can test.

    An HTTPException, because FastAPI passes no others on while it reads a body.
    """

    def __init__(self, status: int, message: str, *, type: str = "invalid_request_error", param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.type, self.param, self.code = message, type, param, code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


def of_error(error: OctavoError, param: str | None = None) -> Problem:
    """The Problem that an error of the engine means; `param` when the error names no field itself."""
    param = getattr(error, "param", None) or param
    if isinstance(error, PromptTooLongError):
        return Problem(400, str(error), param=param, code="context_length_exceeded")
    if isinstance(error, QueueFullError):
        seconds = str(max(1, math.ceil(error.retry_after)))
        return Problem(429, str(error), type="rate_limit_error", code="queue_full", headers={"Retry-After": seconds})
    if isinstance(error, StoppingError):
        return unavailable("the server is shutting down", "stopping")
    if isinstance(error, RequestError):
        return Problem(error.status, str(error), param=param)
    return Problem(500, str(error), type="server_error", code="internal_error")


def unavailable(message: str, code: str) -> Problem:
    return Problem(503, message, type="server_error", code=code, headers={"Retry-After": "2"})


def of_validation(errors: list[Any]) -> Problem:
    """The complaint of pydantic that reaches deepest as one sentence, with the path of the field as `param`."""
    first = max(errors, key=lambda e: len(e.get("loc", ())))   # a field of several types complains once for each of them
    where = [part for part in first.get("loc", ()) if part != "body"]
    if first["type"] == "json_invalid":
        return Problem(400, f"The body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])} at character {where[0] if where else 0}.")
    message = str(first["msg"]).removeprefix("Value error, ")
    if not where and first["type"] == "value_error":
        return Problem(400, f"Invalid request: {message}.", code="invalid_value")
    if not where:
        return Problem(400, "The body must be a JSON object, sent with the header Content-Type: application/json.")
    # Members of a union add their type's name to the path; what the client wrote are lower-case names and indices.
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in where if isinstance(p, int) or (p.isidentifier() and p.islower()))
    param = path.lstrip(".") or str(where[0])
    missing = first["type"] == "missing"
    return Problem(400, f"Missing required parameter: '{param}'." if missing else f"Invalid value for '{param}': {message}.",
                   param=param, code="missing_required_parameter" if missing else "invalid_value")


def install(app: FastAPI) -> None:
    """Every way a request can fail ends in OpenAI's shape."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(OctavoError)
    async def known(_: Request, error: OctavoError) -> JSONResponse:
        return of_error(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return of_validation(list(error.errors())).response()

    @app.exception_handler(AnyHTTPException)
    async def http(request: Request, error: AnyHTTPException) -> JSONResponse:
        if error.status_code == 404:
            message, code = f"Unknown request URL: {request.method} {request.url.path}.", "unknown_url"
        elif error.status_code == 405:
            message, code = f"Not allowed to {request.method} on {request.url.path}.", "method_not_allowed"
        else:
            message, code = str(error.detail), None
        return Problem(error.status_code, message, code=code, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("request to %s failed", request.url.path, exc_info=error)
        identity = current()
        return Problem(500, "The server had an error while processing the request.", type="server_error", code="internal_error",
                       headers={HEADER: identity.id} if identity is not None else None).response()
