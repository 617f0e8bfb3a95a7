"""Case: a model under complaint. What several questions need is loaded or measured once, when the first of them asks."""

from __future__ import annotations

import copy
import shlex
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OctavoError, UsageError
from .complaint import Complaint
from .holders import Holders, holders
from .surroundings import Surroundings, observe, turns
from .tree import NotAskedError

if TYPE_CHECKING:
    from ..loading import Foreseen, LoadedModel
    from ..quality import Comparison, EvaluationText, Windows
    from ..workloads import Timed

CONTEXT, WINDOWS = 128, 6   # tokens of a window, and windows, on which loss is measured: some hundred tokens
PART_WINDOWS = 2            # of them, for the loss of each layer, which takes a forward for every one
SMALL_LOSS = 0.02           # nats per token: twice what 8 bits cost a model of 135 M parameters; nobody sees it
LARGE_LOSS = 0.1            # where answers begin to be other answers; 4 bits, plainly rounded, cost such a model twice to thrice that
STEPS, WARM = 16, 4         # of decoding that are timed, and before them
MOST_USERS = 16             # in what is timed
PROMPT = 64                 # tokens before them
# In commands, where the user gave them.
SHOWN = ("quantization", "kv_cache", "max_model_len", "threads", "isa", "kv_memory_mb", "max_batch", "policy_dir", "cache_dir")


class Case:
    """facts: what was learned that is worth showing; fatal: what kept the model itself from being loaded;
    input_loss: nats per token of the loss that come from rounding inputs, once that is measured."""

    def __init__(self, path: Path, complaint: Complaint, surroundings: Surroundings | None = None) -> None:
        self.model, self.complaint = str(path), complaint
        self.facts: dict[str, Any] = {}
        self.fatal: OctavoError | None = None
        self._given = surroundings
        self._lacked: float | None = None
        self.input_loss = 0.0

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
    def holders(self) -> Holders:
        """What holds memory, foreseen. Raises what `plans` raises."""
        return holders(self)

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
        """Raises NotAskedError where none was named, UsageError for one that cannot be it."""
        from ..loading import load

        if self.complaint.against is None:
            raise NotAskedError("name the original with --against")
        found = load(self.complaint.against, max_model_len=self.complaint.max_model_len, **self._how)
        if found.vocab_size != self.loaded.vocab_size:
            raise UsageError(f"has {found.vocab_size} tokens in its vocabulary, the model {self.loaded.vocab_size}: it is not the original",
                             where=self.complaint.against, remedy="name the model that this one was made of")
        return found

    @cached_property
    def exact_inputs(self) -> LoadedModel:
        """The model with 16-bit inputs of its linears, computed beside it."""
        from ..schemes import TensorSpec

        loaded = self.loaded
        if loaded.backend.name == "native" and loaded.plan.default.activation.quantized:
            return loaded.with_inputs(TensorSpec("bf16"))
        return loaded

    # What is measured ----------------------------------------------------------------------------------------------------------

    @cached_property
    def text(self) -> EvaluationText:
        """The traffic, where there is some, else the text of receipts."""
        from ..quality import read_text

        return read_text("receipt" if self.complaint.traffic is None else self.complaint.traffic)

    @cached_property
    def windows(self) -> Windows:
        return self.first_windows(WINDOWS)

    def first_windows(self, number: int) -> Windows:
        """Fewer of the same."""
        from ..quality import windows_of

        return windows_of(self.loaded, self.text.documents, context=min(CONTEXT, self.loaded.max_model_len), windows=number)

    @cached_property
    def comparison(self) -> Comparison:
        """The model against its original. Raises NotAskedError without one, UsageError for one that it was not made of."""
        from ..quality import compare

        found = compare(self.original, self.loaded, self.windows, threads=self.complaint.threads)
        self.facts["kl"] = float(f"{found.kl.value:.4g}")
        return found

    def loss_in(self, quantization: str) -> float:
        """KL in nats per token of the original in another precision: what that would lose instead. Raises as loading does."""
        from ..loading import load
        from ..quality import compare

        assert self.complaint.against is not None
        model = load(self.complaint.against, quantization=quantization, max_model_len=self.complaint.max_model_len, **{**self._how, "use_cache": False})
        return compare(self.original, model, self.windows, threads=self.complaint.threads).kl.value

    @property
    def users(self) -> int:
        """Whose decoding is timed."""
        return min(self.complaint.users, MOST_USERS)

    @cached_property
    def steps(self) -> list[Timed]:
        """Steps of decoding with the users of the complaint, traced."""
        from ..workloads import decode

        users = self.users
        self.check_context(self.loaded.max_model_len)
        room = self.loaded.max_model_len - STEPS - WARM - users - 2
        wanted = PROMPT if self.complaint.context is None else self.complaint.context
        before = turns()
        found = decode(self.loaded, users, max(1, min(wanted, room)), STEPS + WARM, traced=True)[WARM:]
        if before is not None and (after := turns()) is not None:
            ran, waited = (now - then for now, then in zip(after, before, strict=True))
            self._lacked = max(0.0, waited / max(1, ran + waited))
        self.facts["tokens per second"] = float(f"{users * len(found) / sum(step.seconds for step in found):.4g}")
        return found

    @property
    def lacked(self) -> float | None:
        """The share of the steps' time in which threads could have run and had no core; None: not known, or no backend that can be timed."""
        if self.loaded.backend.name == "native":
            _ = self.steps
        return self._lacked

    def check_context(self, longest: int) -> None:
        """Raises UsageError for a context that the model does not take."""
        if (self.complaint.context or 0) > longest:
            raise UsageError(f"{self.complaint.context} tokens are beyond the {longest} that the model takes", where="--context", remedy="say at most that")

    # What is told --------------------------------------------------------------------------------------------------------------

    def command(self, verb: str = "serve", *, model: str | None = None, **changes: Any) -> str:
        """`octavo VERB MODEL` (or another `model`) with the user's options and these changes: None leaves an option out, a bool gives --name or --no-name."""
        given = {name: getattr(self.complaint, name) for name in SHOWN} | changes
        words = ["octavo", verb, model or self.model]
        for name, value in given.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    def take(self, *names: str) -> str:
        """`cp` of those of these files that the original's folder has into the model's; "" where they are no folders, or the original is not known."""
        source, target = (Path(name).expanduser() for name in (self.complaint.against or "", self.model))
        found = [str(source / name) for name in names if self.complaint.against and (source / name).is_file()]
        return shlex.join(["cp", *found, str(target)]) if found and target.is_dir() else ""

    def quantize(self, scheme: str, *options: str) -> str:
        """`octavo quantize` of the original (or the model, where it is its own) into a folder of its own."""
        source = self.complaint.against or self.model
        name = Path(source).name.removesuffix(".gguf")
        return shlex.join(["octavo", "quantize", source, f"{name}-mended", "--scheme", scheme, *options])


def wide(model: LoadedModel) -> LoadedModel:
    """The same model, over the same weights, with a 16-bit key-value cache."""
    from ..schemes import TensorSpec

    other = copy.copy(model)
    other.cache_spec = TensorSpec("bf16")
    return other.twin(getattr(model.backend, "threads", None))
