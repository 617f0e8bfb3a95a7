"""Config: a config.json read with care. What is missing takes the model_type's default; what cannot be is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ..errors import ModelError

MOST = 1 << 24          # of any size: beyond every model
MOST_LAYERS = 1024
ACTIVATIONS: dict[str, Literal["silu", "gelu_tanh", "gelu"]] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_tanh": "gelu_tanh",
}
SCALED = ("llama3", "yarn", "longrope")  # kinds of rope that know the length a model was trained for before it was stretched


class Config(Mapping[str, Any]):
    """The fields of a config over the defaults of its model_type. null counts as missing."""

    def __init__(self, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.fields = {**defaults, **{key: value for key, value in fields.items() if value is not None}}

    def __getitem__(self, key: str) -> Any:
        return self.fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def error(self, field: str, expected: str, remedy: str = "") -> ModelError:
        found = repr(self.get(field))
        return ModelError(f"expected {expected}, found {found[:80]}", where=f"config.json: {field}", remedy=remedy)

    def size(self, field: str, most: int = MOST) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self.error(field, f"a whole number from 1 to {most}")
        return value

    def number(self, field: str) -> float:
        """A finite number above 0."""
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(field, "a number above 0")
        return float(value)

    def optional(self, field: str) -> float:
        """A number above 0, or 0.0 where the config has none."""
        return self.number(field) if self.get(field) else 0.0

    def flag(self, field: str) -> bool:
        value = self.get(field, False)
        if not isinstance(value, bool):
            raise self.error(field, "true or false")
        return value

    def activation(self, field: str) -> Literal["silu", "gelu_tanh", "gelu"]:
        value = self.get(field)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise self.error(field, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def refuse(self, field: str, why: str) -> None:
        """Raise ModelError when `field` is set to anything but null, false, 0 or an empty list."""
        if self.get(field):
            raise ModelError(f"{why}: {str(self[field])[:80]}", where=f"config.json: {field}")

    def layer_list(self, field: str, layers: int) -> list[Any] | None:
        """A list with (at least) one entry for each layer, or None."""
        value = self.get(field)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < layers:
            raise self.error(field, f"a list of {layers} entries, one for each layer")
        return value[:layers]

    def windows(self, layers: int, window: int, sliding: list[bool]) -> list[int]:
        """The window of each layer (0: none), from `layer_types` where the config has them, else from `sliding`."""
        kinds = self.layer_list("layer_types", layers)
        if kinds is None:
            return [window if slides else 0 for slides in sliding]
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                raise ModelError(f"layers of type {kind!r} are not supported", where="config.json: layer_types")
        if "sliding_attention" in kinds and not window:
            raise self.error("sliding_window", "a window, since layer_types has sliding layers")
        return [window if kind == "sliding_attention" else 0 for kind in kinds]

    def rope(self, layer_type: str | None = None) -> tuple[float, str, dict[str, Any]]:
        """(theta, kind, other fields) in either spelling: `rope_parameters` (transformers 5; for some models one for each type of layer),
        or `rope_theta` and `rope_scaling`."""
        given = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if layer_type is not None and isinstance(given, dict) and isinstance(given.get(layer_type), dict):
            given = given[layer_type]
        if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
            raise self.error("rope_parameters", "one set of rope parameters")
        options = dict(given)
        kind = options.pop("rope_type", None) or options.pop("type", None) or "default"
        options.pop("type", None)
        theta = options.pop("rope_theta", None) or self.get("rope_theta")
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
            raise ModelError(f"expected a number above 0, found {theta!r}", where="config.json: rope_theta")
        if (part := options.pop("partial_rotary_factor", self.get("partial_rotary_factor"))) not in (None, 1, 1.0):
            raise ModelError(f"rotating only a part of each head is not supported: {part}", where="config.json: partial_rotary_factor")
        if kind in SCALED:
            own = self.get("original_max_position_embeddings")
            if own is not None:
                options["original_max_position_embeddings"] = own
        return float(theta), str(kind), options
