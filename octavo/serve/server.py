"""The server process: a bound port, uvicorn, a model that loads meanwhile, and an orderly end.

    bind (a busy port is told before anything is loaded) -> answer 503 -> load in a thread -> ready
    SIGTERM or SIGINT -> 503 for what is new, finish what runs for up to drain_seconds -> exit 0; a second signal ends it at once
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import uvicorn

from ..errors import UsageError
from .app import build_app
from .options import ServerOptions
from .quality import Interrupted, Quality
from .service import Service
from .wire import Protocol

if TYPE_CHECKING:
    from ..engine import Engine
    from ..loading import LoadedModel
    from .tracing import Tracing

log = logging.getLogger(__name__)

GRACE = 3.0        # seconds beyond the drain in which cancelled streams say goodbye
BACKLOG = 2048


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises UsageError when the port is taken or may not be used."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise UsageError(f"no such address: {error}", where=f"{host}:{port}") from None
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError("the port is in use by another program", where=f"{host}:{port}", remedy="stop it or choose another with --port") from None
        raise UsageError(error.strerror or str(error), where=f"{host}:{port}", remedy="choose another with --host and --port") from None
    return listener


class Server:
    """Serves one model. `load` is called in a thread; it should call `check` now and then, which ends it when the server is stopped."""

    def __init__(self, options: ServerOptions, load: Callable[[Callable[[], None]], tuple[LoadedModel, Engine]],
                 on_ready: Callable[[LoadedModel, Engine], None] | None = None, quality: Quality | None = None, tracing: Tracing | None = None) -> None:
        self.service = Service(options, quality, tracing)
        self._load, self._on_ready = load, on_ready
        self._failure: BaseException | None = None
        self._stopped, self._ending = threading.Event(), threading.Lock()
        self._uvicorn: _Uvicorn | None = None

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal comes. Raises whatever `load` raised."""
        try:
            asyncio.run(self._serve(listener))
        finally:
            if self.service.tracing is not None:
                self.service.tracing.close()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, listener: socket.socket) -> None:
        drain = self.service.options.drain_seconds
        config = uvicorn.Config(
            build_app(self.service), http=Protocol, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, backlog=BACKLOG,
            timeout_keep_alive=30, timeout_graceful_shutdown=int(drain + GRACE) + 1, h11_max_incomplete_event_size=64 << 10,
        )
        self._uvicorn = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loader = threading.Thread(target=self._start, args=(loop,), name="octavo-load", daemon=True)
        loader.start()
        try:
            await self._uvicorn.serve([listener])
        finally:
            self._stopped.set()
            await asyncio.to_thread(self._end, loader)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Loader thread."""
        try:
            loaded, engine = self._load(self.check)
            self.check()
            engine.start()
            loop.call_soon_threadsafe(self._ready, loaded, engine)
        except Interrupted:
            return
        except Exception as error:  # told by `run` in the main thread
            self._failure = error
            loop.call_soon_threadsafe(self.stop)

    def check(self) -> None:
        """Raises Interrupted once the server is to stop."""
        if self._stopped.is_set():
            raise Interrupted

    def _ready(self, loaded: LoadedModel, engine: Engine) -> None:
        self.service.open(loaded, engine)
        if self._on_ready is not None and not self._stopped.is_set():
            self._on_ready(loaded, engine)

    def stop(self) -> None:
        """Event loop: begin the end; called again, end now."""
        assert self._uvicorn is not None
        again = self._uvicorn.should_exit
        self.service.close()
        self._stopped.set()
        self._uvicorn.should_exit = True
        self._uvicorn.force_exit |= again
        if self.service.engine is not None and not again:
            if self._failure is None:
                log.info("stopping: requests that run have %.0f s to finish", self.service.options.drain_seconds)
            # Those that do not make it end with an error event instead of a cut connection.
            asyncio.get_running_loop().call_later(self.service.options.drain_seconds, self._cut)

    def _cut(self) -> None:
        threading.Thread(target=self._end_engine, name="octavo-cut", daemon=True).start()

    def _end_engine(self) -> None:
        with self._ending:
            for engine in self.service.engines:
                engine.stop()

    def _end(self, loader: threading.Thread) -> None:
        self._end_engine()
        loader.join(GRACE)


class _Uvicorn(uvicorn.Server):
    """Signals are ours: uvicorn would raise them again once it has ended, and the exit status would not be 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening(listener: socket.socket) -> tuple[str, int]:
    """Host and port of a socket, the host as one writes it into a URL."""
    host, port, *_ = listener.getsockname()
    shown: Any = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return shown, port
