"""Gemma 3, the text part of a model that also sees pictures: its config is nested (text_config), its tensors have a prefix.

Limits      text only; the vision tower in the files is not read
Source      arXiv 2503.19786; transformers models/gemma3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from ._decoder import Rounding
from .gemma3_text import Gemma3Text


class Gemma3(Gemma3Text):
    # transformers before 4.52 wrote the second spelling
    prefixes = (("model.language_model.", "model."), ("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."))
    ignored = (*Gemma3Text.ignored, "*vision_tower.*", "*multi_modal_projector.*")

    def __init__(self, config: Mapping[str, Any], *, max_model_len: int | None = None, rounding: Rounding = "fp32", tied: bool | None = None) -> None:
        text = config.get("text_config")
        if not isinstance(text, Mapping):
            raise ModelError("there is no text_config", where="config.json", remedy="a text-only Gemma 3 has the model_type gemma3_text")
        outer = {"tie_word_embeddings": config.get("tie_word_embeddings"), "architectures": config.get("architectures")}
        super().__init__({**outer, **text}, max_model_len=max_model_len, rounding=rounding, tied=tied)


MODEL = Gemma3
