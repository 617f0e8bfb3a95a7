"""Wire: the socket under a streamed response, for writing without the layers of ASGI between.

An endpoint reaches it through the scope's state, where uvicorn's protocol class below puts it. Bytes that it writes are chunks of a response whose head has
been sent the ordinary way, and whose end will be: h11, which frames both, keeps no count of chunks.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

KEY = "octavo.wire"
MOST_BUFFERED = 16 << 10  # bytes that a client may be behind before its stream waits for it


class Wire:
    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def full(self) -> bool:
        """Whether the client is behind, or gone: send the ordinary way then."""
        return self._transport.is_closing() or self._transport.get_write_buffer_size() > MOST_BUFFERED

    def write(self, data: bytes) -> None:
        """Write `data`, which is not empty, as one chunk."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def wire_of(scope: Scope) -> Wire | None:
    """The wire of a request; None when there is none, or when the response is not sent in chunks."""
    wire: Wire | None = scope.get("state", {}).get(KEY)
    return wire if scope.get("http_version") == "1.1" else None


class Protocol(H11Protocol):
    """uvicorn's HTTP, which tells endpoints of the wire."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, KEY: Wire(transport)}
