"""Whole encoders in one native call: blocks of attention and feed-forward layers whose linears are quantized, recorded as one program over rows.

Between quantized linears torch would copy, add, normalize and launch some hundred small operations; the program does them on the rows that are real
tokens, padding left out. Which blocks: those of transformers' BERT family (BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA), layer norms after the sums.
Whatever the program does not cover (masks that differ from row to row, hidden states of every layer) runs layer by layer as before.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..kernels.native import Constant, NativeWeight
from ..kernels.rows import RowsOps, RowsProgram
from ._unchanged import Unchanged
from ._weight import Quantized, Weight, team, threads
from .layers.linear import QuantizedLinear

FAMILY = ("bert", "roberta", "xlm_roberta", "camembert", "electra")
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu",
               "swish": "silu"}


def fuse_encoders(module: nn.Module) -> int:
    """Lets every encoder inside `module` that can run as one native program do so; how many do."""
    fused = 0
    for part in module.modules():
        if fits(part) and not isinstance(part.__dict__.get("forward"), _Fused):
            part.forward = _Fused(part)  # the parts and their names stay, so state_dict does too
            fused += 1
    return fused


def fits(part: nn.Module) -> bool:
    """Whether this is an encoder of the family, all linears of which are quantized."""
    config: Any = getattr(part, "config", None)
    layers = getattr(part, "layer", None)
    if not type(part).__name__.endswith("Encoder") or getattr(config, "model_type", None) not in FAMILY or not isinstance(layers, nn.ModuleList):
        return False
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False) or config.hidden_act not in ACTIVATIONS:
        return False
    return all(all(isinstance(linear, QuantizedLinear) for linear in _linears(layer)) for layer in layers)


def _linears(layer: Any) -> list[nn.Module]:
    own = layer.attention.self
    return [own.query, own.key, own.value, layer.attention.output.dense, layer.intermediate.dense, layer.output.dense]


class _Fused:
    """The forward of an encoder. Copies and pickles of the encoder bind it to themselves again."""

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder: Any = encoder
        self.program: RowsProgram | None = None
        self.made_of: Unchanged | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Fused:
        return _Fused(memo.get(id(self.encoder), self.encoder))

    def __getstate__(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "program": None, "made_of": None}

    def __call__(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        encoder = self.encoder
        valid = _valid(attention_mask, hidden_states)
        if self.made_of is None or not self.made_of.holds():
            self.program, self.made_of = None, Unchanged(encoder)
        elsewhere = any(a is not None for a in args) or kwargs.get("past_key_values") is not None or hidden_states.device.type != "cpu"
        if isinstance(valid, bool) or elsewhere or self.made_of.watched():
            return type(encoder).forward(encoder, hidden_states, attention_mask, *args, **kwargs)
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.run(hidden_states, valid))

    def run(self, hidden: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """[batch, length, width]; rows where `valid` [batch, length] is False become 0 (None: all are valid)."""
        batch, length, width = hidden.shape
        flat = hidden.detach().reshape(-1, width)
        flat = flat if flat.dtype == torch.float32 else flat.float()
        if valid is None:
            starts = np.arange(0, (batch + 1) * length, length, dtype=np.int32)
            out = torch.from_numpy(self._program().run(flat.contiguous().numpy(), starts))
        else:
            counts = valid.sum(dim=1).numpy()
            starts = np.concatenate([[0], np.cumsum(counts[counts > 0])]).astype(np.int32)
            places = valid.reshape(-1).nonzero()[:, 0]
            out = torch.zeros(batch * length, width)
            out[places] = torch.from_numpy(self._program().run(flat[places].numpy(), starts))
        return out.reshape(batch, length, width).to(hidden.dtype)

    def _program(self) -> RowsProgram:
        if self.program is None:
            width = self.encoder.config.hidden_size
            self.program = RowsOps(team=team(threads())).capture_rows(width, lambda ops, x: layers(ops, self.encoder, x))
        return self.program


def _valid(mask: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | Literal[False] | None:
    """Which rows count, bool [batch, length]; None: all; False: the mask says something else."""
    if mask is None:
        return None
    seen = mask if mask.dtype == torch.bool else mask == 0
    if mask.dim() == 2:
        valid = mask.bool()
    elif mask.dim() == 4 and mask.shape[1] == 1 and mask.dtype.is_floating_point | (mask.dtype == torch.bool):
        valid = seen[:, 0, 0]
        if mask.stride(2) and not bool((seen == seen[:, :, :1]).all()):
            return False
    else:
        return False
    if valid.shape != hidden.shape[:2]:
        return False
    return None if bool(valid.all()) else valid


def layers(ops: RowsOps, encoder: Any, x: Any) -> Any:
    """Records what the layers of an encoder make of rows x."""
    config = encoder.config
    heads = config.num_attention_heads
    head_dim = config.hidden_size // heads
    for layer in encoder.layer:
        own, after = layer.attention.self, layer.attention.output
        q, k, v = ops.linear(x, [table(own.query), table(own.key), table(own.value)], [_bias(own.query), _bias(own.key), _bias(own.value)])
        met = ops.mutual_attention(q, k, v, heads=heads, head_dim=head_dim, scale=head_dim**-0.5)
        x = norm(ops, layer.attention.output.LayerNorm, linear(ops, after.dense, met, residual=x))
        wide = ops.activate(ACTIVATIONS[config.hidden_act], linear(ops, layer.intermediate.dense, x))
        x = norm(ops, layer.output.LayerNorm, linear(ops, layer.output.dense, wide, residual=x))
    return x


def linear(ops: RowsOps, layer: QuantizedLinear, x: Any, residual: Any = None) -> Any:
    return ops.linear(x, [table(layer)], [_bias(layer)], residual)[0]


def norm(ops: RowsOps, layer: Any, x: Any) -> Any:
    bias = None if layer.bias is None else Constant(layer.bias.detach().float().numpy())
    return ops.layer_norm(x, Constant(layer.weight.detach().float().numpy()), bias, layer.eps)


def table(layer: Quantized) -> NativeWeight:
    """The weight of a linear or an embedding as programs take it."""
    part: Weight = layer.weight  # type: ignore[assignment]
    return NativeWeight(part.packed(), group=part.inputs.group, fixed=(part.inputs.fixed, part.inputs.zero_point), threshold=part.inputs.threshold)


def _bias(layer: QuantizedLinear) -> Constant | None:
    bias = layer.derived("bias", layer.bias, layer.weight)
    return None if bias is None else Constant(bias)
