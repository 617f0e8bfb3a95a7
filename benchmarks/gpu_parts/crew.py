"""Workers that measure, and the parent that gives them cases one at a time and keeps what they say.

A kernel that writes outside its arrays spoils a process for good, and one that never ends keeps it: so every case runs in a worker that can be
ended and started again, and the parent, which imports neither torch nor Octavo, loses no result. A case is a dict with an "id"; what comes back is a dict.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Case = dict[str, Any]
Record = dict[str, Any]
PARENT = Path(__file__).resolve().parents[1] / "gpu.py"
START_SECONDS = 120.0  # for torch, triton and the GPU's context


class Worker:
    """One process. `run` gives None where the case ended it; a new one is started for the next."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(self, case: Case, seconds: float) -> Record:
        """What the worker says of the case, or {"error": ...} where it died or took longer than `seconds`."""
        fresh = self._process is None or self._process.poll() is not None
        if fresh:
            self._process = subprocess.Popen([sys.executable, str(PARENT), "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                             env={**os.environ, **self._environment}, bufsize=1)
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return self._ended("the worker ended before the case", process)
        if (line := _line(process, seconds + (START_SECONDS if fresh else 0))) is None:
            process.kill()
            return self._ended(f"no answer within {seconds:.0f} s", process)
        if not line:
            return self._ended("the worker died", process)
        answer: Record = json.loads(line)
        return answer

    def _ended(self, why: str, process: subprocess.Popen[str]) -> Record:
        process.wait()
        self._process = None
        return {"error": f"{why} (exit status {process.returncode})"}

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
    """The next line, "" at the end, None where none came in time. Workers write whole lines only, one for each case."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else None


class HereAndNow:
    """What Worker is, in this process: for tests and for looking into a case."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)

    def run(self, case: Case, seconds: float) -> Record:
        from .worker import answer

        return answer(case)

    def stop(self) -> None:
        pass


def run_all(cases: Iterable[Case], workers: int, until: float, keep: Callable[[Case, Record], None], seconds: float = 90.0,
            environment: dict[str, str] | None = None) -> int:
    """Runs the cases in order, `workers` at a time (0: here), until the monotonic time `until`; how many were left out for lack of time.

    keep(case, record) is called from one thread at a time. seconds: of a case, at most.
    """
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()
    left = 0

    def work() -> None:
        nonlocal left
        worker = Worker(environment or {}) if workers else HereAndNow(environment or {})
        try:
            while True:
                try:
                    case = waiting.get_nowait()
                except queue.Empty:
                    return
                remaining = until - time.monotonic()
                if remaining <= 0:
                    with lock:
                        left += 1
                    continue
                began = time.monotonic()
                record = worker.run(case, min(seconds, remaining + 5))
                record["seconds"] = round(time.monotonic() - began, 2)
                with lock:
                    keep(case, record)
        finally:
            worker.stop()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(max(workers, 1) - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    return left
