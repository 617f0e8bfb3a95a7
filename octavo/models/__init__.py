"""Architectures: one file per Hugging Face model_type, each ending in `MODEL`, a kind of `_decoder.Decoder`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from ..registry import discover, find
from ._config import Config
from ._decoder import Decoder, Rounding

__all__ = ["Config", "Decoder", "Rounding", "models", "read_model"]


def models() -> dict[str, type[Decoder]]:
    """Every architecture by model_type."""
    return discover(__name__, "MODEL")


def read_model(config: Mapping[str, Any], *, max_model_len: int | None = None, rounding: Rounding = "fp32", tied: bool | None = None) -> Decoder:
    """The architecture that a config.json describes.

    max_model_len  the longest sequence to be served; None: what the model was made for
    rounding       the type in which a few constants are rounded, as transformers does when it runs the model in that type
    tied           overrides tie_word_embeddings, for files whose head differs from the embedding although the config says otherwise
    Raises UnknownNameError for an unknown model_type (listing the known), ModelError for a field that cannot be served.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ModelError("there is no model_type", where="config.json", remedy=f"known: {', '.join(models())}")
    return find("model_type", kind, __name__, "MODEL")(config, max_model_len=max_model_len, rounding=rounding, tied=tied)
