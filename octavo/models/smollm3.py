"""SmolLM3: Llama whose every fourth layer has no positions (NoPE).

Layers      no_rope_layers lists 1 for rotary layers and 0 for those without positions; these may slide (use_sliding_window)
Source      arXiv 2501.18795 (the mixture of rotary and NoPE layers), huggingface.co/blog/smollm3; transformers models/smollm3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Attention
from ._decoder import Decoder


class SmolLM3(Decoder):
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2000000.0, "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    }

    def make_attention(self, layer: int) -> Attention:
        c = self.config
        every = c.size("no_rope_layer_interval")
        rotary = c.layer_list("no_rope_layers", self.layers) or [(i + 1) % every for i in range(self.layers)]
        window = self.window() if c.flag("use_sliding_window") else 0
        kinds = c.windows(self.layers, window, [not has for has in rotary]) if window else [0] * self.layers
        bias = c.flag("attention_bias")
        return self.attention(kinds[layer], rope=self.rope() if rotary[layer] else None, bias=bias, out_bias=bias)


MODEL = SmolLM3
