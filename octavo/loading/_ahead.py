"""Work that needs little of Python, done on a second core while the first reads descriptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from .. import _native
from ..checkpoints.octavo import OctavoCheckpoint

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """`work()` in a thread of its own, from now on."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._done: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="octavo-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._work())
        except BaseException as error:  # it is raised where the result is asked for
            self._error = error

    def result(self) -> Result:
        """Waits for it. Raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._done[0]


def read_all(checkpoint: OctavoCheckpoint) -> None:
    """Bring the mapped files into memory, in order, rather than page by page during the first answer."""
    for file in checkpoint.files():
        _native.populate(file)
