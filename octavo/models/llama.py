"""Llama 1 to 3 and their relatives, SmolLM2 among them.

Layers      pre-norm, rotary attention with grouped keys and values, gated SiLU feed-forward
Limits      text only
Source      arXiv 2302.13971, 2307.09288, 2407.21783; transformers models/llama
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Attention
from ._decoder import Decoder


class Llama(Decoder):
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    }

    def make_attention(self, layer: int) -> Attention:
        bias = self.config.flag("attention_bias")
        return self.attention(bias=bias, out_bias=bias)


MODEL = Llama
