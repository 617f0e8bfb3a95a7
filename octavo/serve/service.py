"""Service: what all endpoints share: the loaded model, the engine, the options, and whether requests are taken."""

from __future__ import annotations

import hashlib
import time
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from .. import __version__
from .options import ServerOptions
from .problems import Problem, unavailable
from .quality import Quality
from .samples import HttpTelemetry
from .tools import Syntax, syntax_of

if TYPE_CHECKING:
    from ..engine import Engine
    from ..loading import LoadedModel
    from .identity import Identity
    from .tracing import Tracing


class State(Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Live:
    """A model that answers."""

    def __init__(self, loaded: LoadedModel, engine: Engine) -> None:
        self.loaded, self.engine, self.text = loaded, engine, loaded.text
        template = str(loaded.text.config.get("chat_template") or "")
        self.syntax: Syntax = syntax_of(template)
        self.knows_tools = "tools" in template

    @cached_property
    def fingerprint(self) -> str:
        """Changes when answers to the same seed may: the model, its precision, or Octavo."""
        facts = f"{__version__} {self.loaded.name} {self.loaded.plan} {self.loaded.cache_spec}"
        return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:10]}"

    @cached_property
    def end_ids(self) -> frozenset[int]:
        return frozenset(self.loaded.eos_token_ids)


class Service:
    def __init__(self, options: ServerOptions, quality: Quality | None = None, tracing: Tracing | None = None) -> None:
        self.quality = quality or Quality()
        self.options, self.state, self.created = options, State.STARTING, int(time.time())
        self.http = HttpTelemetry()
        self.tracing = tracing
        self._live: Live | None = None
        self._second: tuple[str, Live] | None = None

    def open_second(self, name: str, loaded: LoadedModel, engine: Engine) -> None:
        """Answer under this name too, from another precision of the model."""
        self._second = name, Live(loaded, engine)

    @property
    def engines(self) -> list[Engine]:
        return [live.engine for live in (self._live, self._second and self._second[1]) if live]

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may give as `model`."""
        return (*self.options.names, *([self._second[0]] if self._second else []))

    def open(self, loaded: LoadedModel, engine: Engine) -> None:
        """Take requests from now on, unless the server was told to stop meanwhile."""
        self._live = Live(loaded, engine)
        if self.state is State.STARTING:
            self.state = State.READY

    def close(self) -> None:
        """Take no more requests; those that run go on."""
        self.state = State.STOPPING

    @property
    def engine(self) -> Engine | None:
        return self._live.engine if self._live else None

    @property
    def loaded(self) -> LoadedModel | None:
        return self._live.loaded if self._live else None

    def ended(self, identity: Identity) -> None:
        """A request has ended: its choices may be among those that are checked."""
        self.quality.offer(identity.tickets)

    def live(self, name: str | None = None) -> Live:
        """The model that answers, to this name. Raises Problem 503 while there is none."""
        if self.state is State.STOPPING:
            raise unavailable("the server is shutting down", "stopping")
        if self._live is None:
            raise unavailable("the model is still loading", "starting")
        return self._second[1] if self._second is not None and name == self._second[0] else self._live

    def check_model(self, name: str) -> None:
        """Raises Problem 404 for a model that is not served here."""
        if name not in self.names:
            shown = name if len(name) <= 100 else name[:100] + "..."
            raise Problem(404, f"The model `{shown}` does not exist; served here: {', '.join(self.names)}.", param="model", code="model_not_found")
