"""Patient: a checkpoint under examination. What its files hold (Survey), what a codec makes of them, and what its config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.survey import Survey, known_parts, survey
from ..errors import OctavoError
from ..layers import Wanted, declare
from ..models import Decoder, read_model

# The part of a weight that holds its numbers, whatever else there is.
CODES = ("weight", "qweight", "weight_packed", "_blocks")
# Parts that are scales, by what they scale.
SCALES = ("scales", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "SCB", "weight.absmax", "weight.nested_absmax", "_scales")
INPUT_SCALES = ("input_scale", "activation_scale", "input_global_scale")


@dataclass
class Patient:
    """survey       the files; of a .gguf file empty
    checkpoint   as the codec opens it; None where it refuses, and `refusal` says why
    weights      module -> {part: stored tensor} (see known_parts)
    """

    path: Path
    survey: Survey
    checkpoint: Checkpoint | None
    refusal: OctavoError | None
    weights: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.checkpoint.config) if self.checkpoint is not None else self.survey.config

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The part of the config that describes the language model."""
        inner = next((part for key in ("text_config", "llm_config") if isinstance(part := self.config.get(key), dict)), {})
        return {**self.config, **inner}

    @cached_property
    def quantization(self) -> dict[str, Any]:
        """quantization_config, or {}; a field may be of any type."""
        for part in (self.config, self.text_config):
            if isinstance(found := part.get("quantization_config"), dict):
                return found
        return {}

    @property
    def method(self) -> str:
        """Lower case, "" for unquantized."""
        return str(self.quantization.get("quant_method") or "").lower()

    @property
    def format(self) -> str:
        return self.checkpoint.codec if self.checkpoint is not None else self.method or ("gguf" if self.path.is_file() else "safetensors")

    @property
    def names(self) -> list[str]:
        """Stored tensors; of a .gguf file under Hugging Face's names."""
        return list(self.survey.tensors or (self.checkpoint.tensors if self.checkpoint is not None else ()))

    @property
    def nbytes(self) -> int:
        if self.survey.tensors:
            return sum(entry.nbytes for entry in self.survey.tensors.values())
        return sum(info.nbytes for info in self.checkpoint.tensors.values()) if self.checkpoint is not None else 0

    @cached_property
    def model(self) -> Decoder | None:
        """The architecture, where it is one that is known here."""
        try:
            return read_model(self.config)
        except OctavoError:
            return None

    @cached_property
    def wanted(self) -> dict[str, Wanted]:
        """Every tensor that the architecture needs, by canonical name; {} where it is not known."""
        try:
            return declare(self.model.describe).wanted if self.model is not None else {}
        except OctavoError:
            return {}

    @cached_property
    def held(self) -> dict[str, str]:
        """Canonical name of each weight or vector -> module and part joined as the files have them. Quantized weights count once, as "….weight"."""
        canonical = self.model.canonical if self.model is not None else str
        if not self.survey.tensors:
            return {canonical(name): name for name in self.names}
        found: dict[str, str] = {canonical(name): name for name in self.checkpoint.tensors} if self.checkpoint is not None else {}
        for module, parts in self.weights.items():
            for part, name in parts.items():
                if part in CODES or (part in SCALES and not any(code in parts for code in CODES)):
                    found.setdefault(canonical(f"{module}.weight"), name)
                elif part == "bias":
                    found[canonical(name)] = name
        return found

    @cached_property
    def used(self) -> set[str]:
        """Stored tensors that the codec knows to be parts of weights."""
        return {part for info in self.checkpoint.tensors.values() for part in info.parts} if self.checkpoint is not None else set()

    def number(self, key: str) -> int | None:
        """A whole number above 0 of the text config, or None."""
        value = self.text_config.get(key)
        return value if type(value) is int and value > 0 else None


def admit(path: Path) -> Patient:
    """Look at the files, then let the codec try. Raises nothing for broken files."""
    refusal: OctavoError | None = None
    checkpoint: Checkpoint | None = None
    try:
        checkpoint = open_checkpoint(path)
    except OctavoError as error:
        refusal = error
    found = Survey(path)
    if path.is_dir():
        try:
            found = survey(path)
        except OctavoError as error:
            refusal = refusal or error
    return Patient(path, found, checkpoint, refusal, known_parts(list(found.tensors)))
