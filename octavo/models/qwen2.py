"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

Layers      with use_sliding_window, layers from max_window_layers on slide (or those that layer_types names)
Source      arXiv 2407.10671, 2412.15115; transformers models/qwen2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Attention
from ._decoder import Decoder


class Qwen2(Decoder):
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
    }

    def make_attention(self, layer: int) -> Attention:
        return self.attention(self.windows()[layer], bias=True)

    def windows(self) -> list[int]:
        """The window of each layer, 0 for none."""
        c = self.config
        window = self.window() if c.flag("use_sliding_window") else 0
        first = c.get("max_window_layers", 0)
        if isinstance(first, bool) or not isinstance(first, int):
            raise c.error("max_window_layers", "a whole number")
        return c.windows(self.layers, window, [window > 0 and i >= first for i in range(self.layers)])


MODEL = Qwen2
