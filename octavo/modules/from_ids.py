"""Whole models of transformers' BERT family from token ids to hidden states in one native call: tables of words, positions and segments, their norm, the
layers, the pooler. Padding never becomes a row. What it does not cover (embeddings as inputs, own positions, hidden states of every layer, masks that
differ from row to row) runs as before, its encoder as one program all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..kernels.rows import IdsProgram, RowsOps
from ._unchanged import Unchanged
from ._weight import team, threads
from .encoder import fits, fuse_encoders, layers, linear, norm, table
from .layers.embedding import QuantizedEmbedding
from .layers.linear import QuantizedLinear

COUNTED_FROM_PADDING = ("roberta", "xlm_roberta", "camembert")  # where the first token's position comes after the id of padding
UNSAID = {"return_dict": True, "use_cache": False, "output_hidden_states": False, "output_attentions": False}  # what changes nothing when it is said


def fuse(module: nn.Module) -> int:
    """Lets every encoder inside `module` that can run as one native program do so, and every model around one that can start from ids; how many
    encoders do."""
    fused = fuse_encoders(module)
    for part in module.modules():
        if _fits(part) and not isinstance(part.__dict__.get("forward"), _FromIds):
            part.forward = _FromIds(part)
    return fused


def _fits(part: Any) -> bool:
    """Whether this is a model of quantized tables, an encoder that runs as one program, and perhaps a pooler."""
    tables = [getattr(getattr(part, "embeddings", None), f"{name}_embeddings", None) for name in ("word", "position", "token_type")]
    encoder = getattr(part, "encoder", None)
    if not type(part).__name__.endswith("Model") or encoder is None or not fits(encoder):
        return False
    if not all(isinstance(t, QuantizedEmbedding) and t.mode is None for t in tables) or not isinstance(part.embeddings.LayerNorm, nn.LayerNorm):
        return False
    pooler, between = getattr(part, "pooler", None), getattr(part, "embeddings_project", None)
    plain = pooler is None or (isinstance(getattr(pooler, "dense", None), QuantizedLinear) and isinstance(getattr(pooler, "activation", None), nn.Tanh))
    return plain and (between is None or isinstance(between, QuantizedLinear))


class _FromIds:
    """The forward of a model. Copies and pickles of the model bind it to themselves again."""

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        self.program: IdsProgram | None = None
        self.made_of: Unchanged | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _FromIds:
        return _FromIds(memo.get(id(self.model), self.model))

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "program": None, "made_of": None}

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        given = (attention_mask, token_type_ids)
        if self._covers(input_ids, given, args, kwargs):
            return self._run(input_ids, *given)
        return type(self.model).forward(self.model, input_ids, attention_mask, token_type_ids, *args, **kwargs)

    def _covers(self, ids: Any, given: tuple[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.device.type != "cpu" or not ids.numel() or any(a is not None for a in args):
            return False
        if any(t is not None and (not isinstance(t, torch.Tensor) or t.shape != ids.shape) for t in given):
            return False
        if kwargs.get("return_dict") is False or any(v is not None and v is not UNSAID.get(k) for k, v in kwargs.items()):
            return False
        config = self.model.config
        if not getattr(config, "return_dict", True) or getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return False
        if self.made_of is None or not self.made_of.holds():
            self.program, self.made_of = None, Unchanged(self.model)
        return not self.made_of.watched()

    def _run(self, ids: torch.Tensor, mask: torch.Tensor | None, types: torch.Tensor | None) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, BaseModelOutputWithPoolingAndCrossAttentions

        program = self.program = self.program or self._recorded()
        batch, length = ids.shape
        hidden = torch.empty(batch * length, program.width)
        pooled = None if program.chosen_width is None else torch.empty(batch, program.chosen_width)
        if mask is not None and mask.dtype not in (torch.int64, torch.bool):
            mask = mask != 0
        counted = self.model.config.model_type in COUNTED_FROM_PADDING
        whole = program.run(_numbers(ids.long()), None if mask is None else _numbers(mask), None if types is None else _numbers(types.long()),
                            self.model.embeddings.padding_idx if counted else -1, hidden.numpy(), None if pooled is None else pooled.numpy())
        hidden = hidden.view(batch, length, program.width)
        if not hasattr(self.model, "pooler"):
            return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
        if pooled is not None and not whole:
            pooled = self.model.pooler(hidden)  # of zeros, where a sequence begins with padding
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)

    def _recorded(self) -> IdsProgram:
        model = self.model
        tables = model.embeddings

        def describe(ops: RowsOps) -> tuple[Any, Any]:
            x = ops.add(ops.look_up(table(tables.word_embeddings), "tokens"), ops.look_up(table(tables.token_type_embeddings), "types"))
            x = norm(ops, tables.LayerNorm, ops.add(x, ops.look_up(table(tables.position_embeddings), "positions")))
            if getattr(model, "embeddings_project", None) is not None:
                x = linear(ops, model.embeddings_project, x)
            x = layers(ops, model.encoder, x)
            pooler = getattr(model, "pooler", None)
            return x, None if pooler is None else ops.activate("tanh", linear(ops, pooler.dense, ops.select(x)))

        return RowsOps(team=team(threads())).capture_ids(describe)


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.contiguous().numpy()
    return array
