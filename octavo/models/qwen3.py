"""Qwen3 (dense): Qwen2 without biases; queries and keys are normed head by head, and head_dim is a field of its own.

Source      arXiv 2505.09388; transformers models/qwen3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..layers import Attention
from .qwen2 import Qwen2


class Qwen3(Qwen2):
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}

    def make_attention(self, layer: int) -> Attention:
        bias = self.config.flag("attention_bias")
        return self.attention(self.windows()[layer], head_norm=self.norm, bias=bias, out_bias=bias)


MODEL = Qwen3
