"""LaunchedServer: `octavo serve` in a process of its own, from its start until it is stopped, with what it uses."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import OctavoError

STOP = 20.0  # seconds that it gets to stop


class LaunchedServer:
    """Use it as a context: inside it the server is ready at `url`; afterwards it is gone.

    `options` are those of `octavo serve` after the model, as on a command line. Raises OctavoError, with the last that it said, where it does not become
    ready within `timeout` seconds.
    """

    def __init__(self, model: str, options: Sequence[str] = (), *, timeout: float = 900.0) -> None:
        self.model, self.options, self.timeout = model, list(options), timeout
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.ready_seconds = 0.0
        """From its start until it took requests."""
        self._log: Path | None = None
        self._handler: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LaunchedServer:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "octavo", "serve", self.model, *self.options, "--host", "127.0.0.1", "--port", str(self.port)]
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            # Who ends this process means the server too, which would otherwise go on by itself.
            self._handler = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        with tempfile.NamedTemporaryFile(prefix="octavo-serve-", suffix=".log", delete=False) as file:
            self._log = Path(file.name)
        began = time.monotonic()
        try:
            with _held(), self._log.open("wb") as log:
                self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
            while not self._ready():
                if self.process.poll() is not None:
                    raise OctavoError(f"the server ended: {self._said()}", where=self._called())
                if time.monotonic() - began > self.timeout:
                    raise OctavoError(f"not ready within {self.timeout:g} s: {self._said()}", where=self._called())
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise
        self.ready_seconds = time.monotonic() - began
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to stop, and make it."""
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(STOP)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
            self.process = None
        if self._log is not None:
            self._log.unlink(missing_ok=True)

    def memory(self) -> dict[str, int]:
        """Bytes of the process: "rss" now, "peak_rss" ever, "pss" (pages shared with others in part). Empty where the system does not tell."""
        found: dict[str, int] = {}
        if self.process is None:
            return found
        for name, file, key in (("rss", "status", "VmRSS"), ("peak_rss", "status", "VmHWM"), ("pss", "smaps_rollup", "Pss")):
            with contextlib.suppress(OSError, StopIteration, ValueError):
                lines = Path(f"/proc/{self.process.pid}/{file}").read_text().splitlines()
                found[name] = int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _called(self) -> str:
        return f"octavo serve {self.model} {' '.join(self.options)}".strip()

    def _said(self) -> str:
        """The last lines of its log, in one."""
        assert self._log is not None
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]).removeprefix("octavo: ") or "it said nothing"


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """Signals that end this process wait: between a fork and the moment that its number is known here, the server would be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(number))]  # what is ignored stays ignored
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heard}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
