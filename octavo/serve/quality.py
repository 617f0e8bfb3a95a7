"""What the server knows of its model's loss: read, or measured in the background once it is ready."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..machine import give_back_freed
from .drift import Drift
from .shadow import TURN, Interrupted, Shadow

if TYPE_CHECKING:
    from ..engine import Engine
    from ..engine.ticket import Ticket
    from ..loading import LoadedModel
    from ..quality.online import Online
    from ..quality.receipt import Receipt


log = logging.getLogger(__name__)
Mode = Literal["off", "background", "before"]


class Quality:
    """state: off, waiting (for the model), measuring, done. Written by one thread at a time, read by the event loop."""

    def __init__(self, mode: Mode = "off", max_kl: float | None = None, shadow: Shadow | None = None) -> None:
        self.mode, self.max_kl, self.shadow = mode, max_kl, shadow
        self.state = "off" if mode == "off" and max_kl is None else "waiting"
        self.receipt: Receipt | None = None
        self.drift = Drift()
        self._thread: threading.Thread | None = None

    def before(self, online: Callable[[], Online], check: Callable[[], None], where: str) -> None:
        """Before the server is ready: with `before` or a limit, measure unless it is known. Raises QualityError above the limit."""
        if self.max_kl is None and self.mode != "before":
            return
        self.state = "measuring"
        one = online()
        self._know(one.kept(sure=self.max_kl is not None) or one.measure(check))
        assert self.receipt is not None
        if self.max_kl is not None:
            self.receipt.refuse_above(self.max_kl, where)

    def fit_cache(self, online: Callable[[], Online], quantized: bool, check: Callable[[], None], where: str) -> None:
        """Before the server is ready, with `--kv-cache auto` and a limit: choose the cache so that the whole model keeps it. Raises QualityError where it
        cannot: the weights alone have lost more, or what they have lost is not known."""
        from ..quality.fit import fit_cache

        assert self.max_kl is not None
        self.state = "measuring"
        self._know(fit_cache(online(), self.max_kl, quantized, check))
        assert self.receipt is not None
        self.receipt.refuse_above(self.max_kl, f"{where}, weights alone" if self.receipt.status == "measured" else where)

    def start(self, online: Callable[[], Online], check: Callable[[], None]) -> None:
        """Once the server is ready: find out in a thread that gets out of the way of requests."""
        if self.mode == "background" and self.receipt is None:
            self._thread = threading.Thread(target=self._background, args=(online, check), name="octavo-receipt", daemon=True)
            self._thread.start()

    def watch(self, original: Callable[[], LoadedModel], served: LoadedModel, engine: Engine, check: Callable[[], None]) -> None:
        """Once the server is ready: begin to check requests, where that was asked for."""
        def after_the_receipt() -> LoadedModel:  # both load the original: not at the same time
            while self.state in ("waiting", "measuring"):
                check()
                time.sleep(TURN)
            return original()

        if self.shadow is not None:
            self.shadow.start(self.drift, after_the_receipt, served, engine, check)

    def offer(self, tickets: Sequence[Ticket]) -> None:
        """What has ended, for shadow checking."""
        if self.shadow is not None:
            self.shadow.offer(tickets)

    @property
    def line(self) -> str:
        """For the greeting: what is known, or that it is being found out."""
        if self.receipt is not None:
            return self.receipt.line
        return "what quantizing lost is looked up, or measured in the background: /v1/quality" if self.mode == "background" else ""

    def join(self, seconds: float) -> None:
        """Wait for the threads after the server was stopped."""
        if self._thread is not None:
            self._thread.join(seconds)
        if self.shadow is not None:
            self.shadow.join(seconds)

    def to_json(self) -> dict[str, Any]:
        from ..quality.intervals import finite
        from ..quality.online import as_json

        known = as_json(self.receipt, self.state)
        if self.shadow is not None:
            kl = self.drift.kl
            known["shadow"] = {"state": self.shadow.state, "share": self.shadow.share, "kl": None if kl is None else [finite(one) for one in kl]}
        return known

    def _background(self, online: Callable[[], Online], check: Callable[[], None]) -> None:
        with contextlib.suppress(OSError, AttributeError):  # where a thread has no priority of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        self.state = "measuring"
        try:
            one = online()
            known = one.kept()
            self._know(known or one.measure(check, threads=1), told=known is None)
            del one  # the original
            if known is None:
                give_back_freed()
        except Interrupted:
            self.state = "stopped"
        except Exception:  # whatever it is, the server serves; the log says what
            log.exception("the receipt could not be made")
            self.state = "failed"

    def _know(self, receipt: Receipt, told: bool = True) -> None:
        self.receipt, self.state = receipt, "done"
        if told:
            log.info("quality: %s", receipt.line)
