"""embedding: nn.Embedding and nn.EmbeddingBag.

What it is: rows of codes, widened when they are looked up.
When to choose it: large vocabularies; in small models the table is most of the bytes.
Limits: never below 8 bits unless the plan names the layer: few rows are looked up often and errors do not average out. max_norm stays in float.
Source: csrc/ops.h, Kernels::embed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...schemes import Scheme
from ...schemes import parse as parse_scheme
from .._inputs import Inputs
from .._kind import Given, Wanted, why_not_weight
from .._weight import Quantized, Weight, immediate

FEWEST_BITS = parse_scheme("W8A16")


class QuantizedEmbedding(Quantized):
    """Rows [..., k] of integers [...]; with a bag mode one row for each bag."""

    kind = "embedding"

    def __init__(self, module: nn.Module, weight: Weight, scheme: str) -> None:
        super().__init__()
        table: Any = module
        self.weight, self.scheme = weight, scheme
        self.num_embeddings, self.embedding_dim, self.padding_idx = table.num_embeddings, table.embedding_dim, table.padding_idx
        self.mode: str | None = getattr(table, "mode", None)
        self.include_last_offset: bool = getattr(table, "include_last_offset", False)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        flat = ids.reshape(-1).contiguous().numpy()
        out = np.empty((len(flat), self.embedding_dim), np.float32)
        immediate().embed(self.weight.native, flat, out)
        return torch.from_numpy(out).reshape(*ids.shape, self.embedding_dim)

    def forward(self, ids: torch.Tensor, offsets: torch.Tensor | None = None, per_sample_weights: torch.Tensor | None = None) -> torch.Tensor:
        if self.mode is None:
            return self.rows(ids)
        # Each row once, then torch's own sums over bags: places in a small table stand for ids
        used, places = torch.unique(ids, return_inverse=True)
        padding = None
        if self.padding_idx is not None and bool((found := used == self.padding_idx).any()):
            padding = int(found.nonzero()[0, 0])
        return functional.embedding_bag(places, self.rows(used), offsets, mode=self.mode, per_sample_weights=per_sample_weights,
                                        include_last_offset=self.include_last_offset, padding_idx=padding)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} x {self.embedding_dim}, {self.scheme}"


class EmbeddingKind:
    name = "embedding"

    def replaces(self, module: nn.Module) -> bool:
        return type(module) in (nn.Embedding, nn.EmbeddingBag)

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None:
        if module.max_norm is not None:
            return "rows with a max_norm change while they are looked up"
        return why_not_weight(scheme.weight)

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        return None

    def met(self, module: nn.Module, given: Given) -> dict[str, torch.Tensor]:
        return {}  # a row is looked up by itself: nothing it is multiplied with could make good what another one lost

    def build(self, module: nn.Module, wanted: Wanted) -> Quantized:
        scheme = replace(wanted.scheme, activation=FEWEST_BITS.activation)
        values: Any = module.weight
        return QuantizedEmbedding(module, wanted.weight(values, inputs=Inputs(), spec=scheme.weight), str(scheme))

    def blank(self, module: nn.Module, scheme: Scheme, weights: dict[str, Weight], held: frozenset[str]) -> Quantized:
        return QuantizedEmbedding(module, weights["weight"], str(scheme))


LAYER = EmbeddingKind()
