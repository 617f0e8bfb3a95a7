"""Gemma 3, text: five layers of local attention to one of global attention, four norms a layer.

    x = x + norm(attention(norm(x)))
    x = x + norm(mlp(norm(x)))

Embedding   times sqrt(hidden), rounded to the type the model runs in: it was trained in bfloat16, where 25.298 is 25.25
Norms       store their gain as a distance from 1; queries and keys are normed head by head
Rotary      local layers have a base of their own (rope_local_base_freq) and are never stretched
Source      arXiv 2503.19786; transformers models/gemma3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import formats
from ..kernels.op import Value
from ..layers import Attention, GatedMLP, RMSNorm, Rope, Tensors
from ._decoder import Decoder


class Gemma3Text(Decoder):
    defaults: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
    }

    def make_attention(self, layer: int) -> Attention:
        c = self.config
        c.refuse("use_bidirectional_attention", "attention to later tokens is for encoders")
        pattern = c.size("sliding_window_pattern")
        window = c.windows(self.layers, self.window(), [(i + 1) % pattern > 0 for i in range(self.layers)])[layer]
        return self.attention(window, scale=c.number("query_pre_attn_scalar") ** -0.5, rope=self.local_rope() if window else self.rope("full_attention"),
                              head_norm=self.norm, bias=c.flag("attention_bias"), out_bias=c.flag("attention_bias"),
                              softcap=c.optional("attn_logit_softcapping"))

    def make_norm(self) -> RMSNorm:
        return RMSNorm(self.config.number("rms_norm_eps"), offset=1.0)

    def make_mlp(self) -> GatedMLP:
        return GatedMLP(self.hidden, self.config.size("intermediate_size"), self.config.activation("hidden_activation"))

    def local_rope(self) -> Rope:
        given = self.config.get("rope_parameters")
        if isinstance(given, dict) and isinstance(given.get("sliding_attention"), dict):
            return self.rope("sliding_attention")
        return Rope("rope.sliding_attention", self.head_dim, self.config.number("rope_local_base_freq"), self.max_model_len, self.trained)

    def layer(self, t: Tensors, x: Value, layer: int) -> Value:
        at, ops = f"model.layers.{layer}", t.ops
        y = self.attentions[layer](t, self.norm(t, x, f"{at}.input_layernorm", self.hidden), f"{at}.self_attn", layer)
        x = ops.add(x, self.norm(t, y, f"{at}.post_attention_layernorm", self.hidden))
        y = self.mlp(t, self.norm(t, x, f"{at}.pre_feedforward_layernorm", self.hidden), f"{at}.mlp")
        return ops.add(x, self.norm(t, y, f"{at}.post_feedforward_layernorm", self.hidden))

    @property
    def embed_factor(self) -> float:
        factor = np.array([self.hidden**0.5], np.float32)
        number = formats.get(self.rounding)
        return float(number.decode(number.encode(factor))[0])

    @property
    def logit_softcap(self) -> float:
        return self.config.optional("final_logit_softcapping")


MODEL = Gemma3Text
