"""A real server process around the parrot: `python -m serve.parrot_process PAUSE DRAIN LOAD_SECONDS`; prints its port. Run from tests/."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from octavo.engine import Engine, EngineOptions
from octavo.serve.options import ServerOptions
from octavo.serve.server import Server, bind, listening

from .conftest import Parrot


def main(pause: float, drain: float, load_seconds: float) -> None:
    def load(check: Callable[[], None]) -> tuple[Any, Engine]:
        end = time.monotonic() + load_seconds
        while time.monotonic() < end:
            check()
            time.sleep(0.01)
        if load_seconds < 0:
            raise RuntimeError("it did not load")
        loaded: Any = Parrot(pause=pause)
        return loaded, Engine(loaded, EngineOptions(kv_pages=256, max_batch=16))

    listener = bind("127.0.0.1", 0)
    print(listening(listener)[1], flush=True)
    Server(ServerOptions(names=("parrot",), drain_seconds=drain), load).run(listener)


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:4]))
