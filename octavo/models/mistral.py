"""Mistral 7B and its relatives: Llama with attention over a sliding window.

Limits      one window for all layers, as the published models have it (null: no window)
Source      arXiv 2310.06825; transformers models/mistral
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Attention
from ._decoder import Decoder


class Mistral(Decoder):
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "max_position_embeddings": 131072,
    }

    def make_attention(self, layer: int) -> Attention:
        self.config.refuse("layer_types", "windows that differ from layer to layer are another model_type (ministral)")
        return self.attention(self.window())


MODEL = Mistral
