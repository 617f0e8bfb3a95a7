"""hadamard: rotations that leave no channel larger than the others, folded into the weights.

What it is: the values of each head, and what o_proj reads, are rotated; with `residual` the stream that all layers read and write, too. Gains of norms go into
the linears that follow them first, since a rotation does not commute with them. The model computes the same; nothing is added to it.
When to choose it: inputs of 4 bits, or of 8 bits where outlier channels hurt and smoothquant does not suffice. docs/transforms.md has what was measured.
Limits: the residual stream only of models whose layers are plain pre-norm ones (not Gemma's). Tied embeddings come apart, since only the output layer takes the
last norm's gain: one more table of words in 16 bits. What down_proj reads is not rotated: a precision with h (A8h) does that.
Options: residual (no) rotates the residual stream; seed of the signs.
Source: arXiv 2404.00456 (QuaRot), 2405.16406 (SpinQuant).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...calibration import Block
from ...calibration.blocks import Weights
from ...errors import UsageError
from ...models import Decoder
from ...schemes import Scheme
from ..method import Needs
from ._rotation import Rotation, rotation

EMBEDDING, HEAD, LAST = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True)
class Hadamard:
    residual: bool = False
    seed: int = 0

    def prepare(self, model: Decoder, weights: Weights) -> None:
        """Both ends of the model."""
        if not self.residual:
            return
        if not model.adds_outputs_as_they_are:
            raise UsageError(f"{type(model).__name__} has norms between its layers' outputs and the residual stream, which do not commute with a rotation",
                             where="--set hadamard.residual", remedy="leave it out: the values of attention are rotated anyway")
        stream = self._stream(model)
        gain = weights.get(LAST) + np.float32(model.norm.offset)
        weights.edit(LAST, lambda values: np.full_like(values, 1 - model.norm.offset))
        weights.edit(HEAD, lambda rows: stream.columns(rows * gain), source=EMBEDDING if model.tied else HEAD)
        weights.edit(EMBEDDING, stream.columns)
        if model.tied:
            weights.config["tie_word_embeddings"] = False

    def apply(self, block: Block, schemes: Mapping[str, Scheme], needs: Needs) -> None:
        block.load()
        if self.residual:
            self._rotate_stream(block)
        self._rotate_values(block, schemes)

    def _stream(self, model: Decoder) -> Rotation:
        return rotation(model.hidden, self.seed)

    def _rotate_stream(self, block: Block) -> None:
        tensors, model, at = block.tensors, block.model, f"model.layers.{block.layer}"
        stream, offset = self._stream(model), model.norm.offset
        for norm, readers in ((f"{at}.input_layernorm.weight", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                              (f"{at}.post_attention_layernorm.weight", ("mlp.gate_proj", "mlp.up_proj"))):
            gain = tensors[norm] + np.float32(offset)
            for reader in readers:
                tensors[f"{at}.{reader}.weight"] = stream.columns(tensors[f"{at}.{reader}.weight"] * gain)
            tensors[norm] = np.full_like(gain, 1 - offset)
        for writer in ("self_attn.o_proj", "mlp.down_proj"):
            for part in ("weight", "bias"):
                if (name := f"{at}.{writer}.{part}") in tensors:
                    tensors[name] = stream.rows(tensors[name])

    def _rotate_values(self, block: Block, schemes: Mapping[str, Scheme]) -> None:
        tensors, at = block.tensors, f"model.layers.{block.layer}.self_attn"
        attention = block.model.attentions[block.layer]
        if f"{at}.v_proj.weight" not in schemes or f"{at}.o_proj.weight" not in schemes:
            return
        heads = rotation(attention.head_dim, self.seed + 1)
        for part in ("weight", "bias"):
            if (name := f"{at}.v_proj.{part}") in tensors:
                values = tensors[name]
                parts = values.reshape(attention.kv_heads, attention.head_dim, -1)
                tensors[name] = np.stack([heads.rows(head) for head in parts]).reshape(values.shape)
        out = tensors[f"{at}.o_proj.weight"]
        tensors[f"{at}.o_proj.weight"] = heads.columns(out.reshape(-1, attention.head_dim)).reshape(out.shape)


TRANSFORM = Hadamard
