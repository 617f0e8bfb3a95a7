"""Case: a model under complaint. What several questions need is loaded or measured once, when the first of them asks."""

from __future__ import annotations

import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OctavoError
from .complaint import Complaint
from .surroundings import Surroundings, observe
from .tree import NotAskedError

if TYPE_CHECKING:
    from ..loading import Foreseen, LoadedModel
    from ..quality import Comparison, EvaluationText, Windows
    from ..workloads import Timed

CONTEXT, WINDOWS = 128, 6   # tokens of a window, and windows, on which loss is measured: some hundred tokens
STEPS, WARM = 16, 4         # of decoding that are timed, and before them
PROMPT = 64                 # tokens before them
SHOWN = ("quantization", "kv_cache", "max_model_len", "threads", "isa", "kv_memory_mb", "policy_dir", "cache_dir")  # in commands, where the user gave them


class Case:
    """facts: what was learned that is worth showing; fatal: what kept the model itself from being loaded."""

    def __init__(self, path: Path, complaint: Complaint, surroundings: Surroundings | None = None) -> None:
        self.model, self.complaint = str(path), complaint
        self.facts: dict[str, Any] = {}
        self.fatal: OctavoError | None = None
        self._given = surroundings

    @cached_property
    def surroundings(self) -> Surroundings:
        return self._given or observe()

    # What is loaded ------------------------------------------------------------------------------------------------------------

    @property
    def _how(self) -> dict[str, Any]:
        said = self.complaint
        return {"backend": said.backend, "threads": said.threads, "isa": said.isa, "cache_dir": said.cache_dir, "use_cache": said.cache}

    @cached_property
    def plans(self) -> Foreseen:
        """What loading the model means; reads no weights."""
        try:
            return self.foresee(self.model, quantization=self.complaint.quantization)
        except OctavoError as error:
            self.fatal = error
            raise

    def foresee(self, model: str, *, quantization: str | None = None, **changes: Any) -> Foreseen:
        from ..loading import foresee

        given = {"kv_cache": self.complaint.kv_cache, "max_model_len": self.complaint.max_model_len, **self._how}
        return foresee(model, quantization=quantization, **{**given, **changes})

    @cached_property
    def loaded(self) -> LoadedModel:
        from ..loading import load

        said = self.complaint
        try:
            found = load(self.model, quantization=said.quantization, kv_cache=said.kv_cache, max_model_len=said.max_model_len, **self._how)
        except OctavoError as error:
            self.fatal = error
            raise
        self.facts["runs as"] = found.plan.short
        return found

    @cached_property
    def original(self) -> LoadedModel:
        """Raises NotAskedError where none was named."""
        from ..loading import load

        if self.complaint.against is None:
            raise NotAskedError("name the original with --against")
        return load(self.complaint.against, max_model_len=self.complaint.max_model_len, **self._how)

    # What is measured ----------------------------------------------------------------------------------------------------------

    @cached_property
    def text(self) -> EvaluationText:
        """The traffic, where there is some, else the text of receipts."""
        from ..quality import read_text

        return read_text("receipt" if self.complaint.traffic is None else self.complaint.traffic)

    @cached_property
    def windows(self) -> Windows:
        from ..quality import windows_of

        return windows_of(self.loaded, self.text.documents, context=min(CONTEXT, self.loaded.max_model_len), windows=WINDOWS)

    @cached_property
    def comparison(self) -> Comparison:
        """The model against its original. Raises NotAskedError without one, UsageError for one that it was not made of."""
        from ..quality import compare

        found = compare(self.original, self.loaded, self.windows, threads=self.complaint.threads)
        self.facts["kl"] = float(f"{found.kl.value:.4g}")
        return found

    @cached_property
    def steps(self) -> list[Timed]:
        """Steps of decoding with the users of the complaint, traced."""
        from ..workloads import decode

        users = min(self.complaint.users, 16)
        room = self.loaded.max_model_len - STEPS - WARM - users - 2
        wanted = PROMPT if self.complaint.context is None else self.complaint.context
        found = decode(self.loaded, users, max(1, min(wanted, room)), STEPS + WARM, traced=True)[WARM:]
        self.facts["tokens per second"] = float(f"{users * len(found) / sum(step.seconds for step in found):.4g}")
        return found

    # What is told --------------------------------------------------------------------------------------------------------------

    def command(self, verb: str = "serve", **changes: Any) -> str:
        """`octavo VERB MODEL` with the user's options and these changes: None leaves an option out, a bool gives --name or --no-name."""
        given = {name: getattr(self.complaint, name) for name in SHOWN} | changes
        words = ["octavo", verb, self.model]
        for name, value in given.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def quantize(self, scheme: str, *options: str) -> str:
        """`octavo quantize` of the original (or the model, where it is its own) into a folder of its own."""
        source = self.complaint.against or self.model
        name = Path(source).name.removesuffix(".gguf")
        return shlex.join(["octavo", "quantize", source, f"{name}-mended", "--scheme", scheme, *options])
