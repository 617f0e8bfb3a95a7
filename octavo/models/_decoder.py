"""Decoder: what all text models here have in common.

    x = embed(tokens)
    for each layer:
        x = x + attention(norm(x))
        x = x + mlp(norm(x))
    logits = head(norm(x))

A model file says what its attention is, layer by layer, and what differs from this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from ..errors import CapacityError, ModelError
from ..kernels.op import Value
from ..layers import Attention, GatedMLP, RMSNorm, Rope, Tensors, embed, head
from ._config import MOST_LAYERS, Config

Rounding = Literal["fp32", "bf16"]

COMMON: dict[str, Any] = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
SERVED = ("ForCausalLM", "ForConditionalGeneration")


class Decoder:
    """Describes one model. Made from a config.json, it knows shapes but holds no weights.

    defaults   what a config of this model_type means where it is silent (transformers' own defaults)
    prefixes   other beginnings of tensor names, and what they stand for here
    ignored    patterns of tensors that may lie in the files and are not needed for text
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    prefixes: ClassVar[tuple[tuple[str, str], ...]] = ()
    ignored: tuple[str, ...] = ("*rotary_emb.inv_freq",)

    def __init__(self, config: Mapping[str, Any], *, max_model_len: int | None = None, rounding: Rounding = "fp32", tied: bool | None = None) -> None:
        c = self.config = Config(config, {**COMMON, **self.defaults})
        self.rounding = rounding
        names = c.get("architectures") or ()
        if not isinstance(names, (list, tuple)):
            raise c.error("architectures", "a list of names")
        for name in names:
            if not str(name).endswith(SERVED):
                raise ModelError(f"{name} is no language model that writes text", where="config.json: architectures", remedy="known: ...ForCausalLM")
        self.vocab_size, self.hidden = c.size("vocab_size"), c.size("hidden_size")
        self.layers = c.size("num_hidden_layers", MOST_LAYERS)
        self.heads = c.size("num_attention_heads")
        self.kv_count = c.size("num_key_value_heads") if c.get("num_key_value_heads") is not None else self.heads
        if self.heads % self.kv_count:
            raise c.error("num_key_value_heads", f"a divisor of the {self.heads} heads")
        if c.get("head_dim") is None and self.hidden % self.heads:
            raise c.error("hidden_size", f"a multiple of the {self.heads} heads, since there is no head_dim")
        self.head_dim = c.size("head_dim") if c.get("head_dim") is not None else self.hidden // self.heads
        self.trained = c.size("max_position_embeddings", 1 << 30)
        self.natural_len = self._natural_len()
        self.max_model_len = self.natural_len if max_model_len is None else max_model_len
        if not 1 <= self.max_model_len <= self.natural_len:
            raise CapacityError(f"a context of {max_model_len} tokens is beyond this model", where="max_model_len", remedy=f"it takes 1 to {self.natural_len}")
        self.tied = c.flag("tie_word_embeddings") if tied is None else tied
        self.norm = self.make_norm()
        self.mlp = self.make_mlp()
        self.attentions = [self.make_attention(layer) for layer in range(self.layers)]

    # What a model file says ------------------------------------------------------------------------------------------------------

    def make_attention(self, layer: int) -> Attention:
        raise NotImplementedError

    def make_norm(self) -> RMSNorm:
        return RMSNorm(self.config.number("rms_norm_eps"))

    def make_mlp(self) -> GatedMLP:
        c = self.config
        return GatedMLP(self.hidden, c.size("intermediate_size"), c.activation("hidden_act"), c.flag("mlp_bias"))

    @property
    def adds_outputs_as_they_are(self) -> bool:
        """Whether attention and feed-forward write into the residual stream without a norm between (plain pre-norm layers; not Gemma's)."""
        return type(self).layer is Decoder.layer

    def layer(self, t: Tensors, x: Value, layer: int) -> Value:
        """[rows, hidden] after one layer."""
        at = f"model.layers.{layer}"
        x = self.attentions[layer](t, self.norm(t, x, f"{at}.input_layernorm", self.hidden), f"{at}.self_attn", layer, residual=x)
        return self.mlp(t, self.norm(t, x, f"{at}.post_attention_layernorm", self.hidden), f"{at}.mlp", residual=x)

    @property
    def embed_factor(self) -> float:
        return 1.0

    @property
    def logit_softcap(self) -> float:
        return 0.0

    # What follows from it --------------------------------------------------------------------------------------------------------

    def describe(self, t: Tensors) -> Value:
        """Logits [logit_rows, vocab] of the step's tokens."""
        x = embed(t, "model.embed_tokens", self.vocab_size, self.hidden, self.embed_factor)
        for layer in range(self.layers):
            x = self.layer(t, x, layer)
        x = self.norm(t, t.ops.select(x), "model.norm", self.hidden)
        return head(t, x, "model.embed_tokens" if self.tied else "lm_head", self.vocab_size, self.hidden, self.logit_softcap)

    @property
    def kv_heads(self) -> list[int]:
        """Key-value heads of each layer."""
        return [attention.kv_heads for attention in self.attentions]

    @property
    def head_dims(self) -> list[int]:
        """Width of the heads of each layer."""
        return [attention.head_dim for attention in self.attentions]

    def canonical(self, name: str) -> str:
        """The name used here for a tensor that files call `name`."""
        for prefix, meaning in self.prefixes:
            if name.startswith(prefix):
                return meaning + name[len(prefix) :]
        return name

    def attention(self, window: int = 0, **changes: Any) -> Attention:
        """The usual attention of this config: rotary, scaled by 1 / sqrt(head_dim), without biases."""
        changes.setdefault("scale", self.head_dim**-0.5)
        if "rope" not in changes:
            changes["rope"] = self.rope()
        return Attention(self.hidden, self.heads, self.kv_count, self.head_dim, window=window, **changes)

    def rope(self, layer_type: str | None = None) -> Rope:
        theta, kind, options = self.config.rope(layer_type)
        if self.head_dim % 2:
            raise self.config.error("head_dim", "an even number, since positions rotate pairs")
        rope = Rope(f"rope.{layer_type or 'all'}", self.head_dim, theta, self.max_model_len, self.trained, kind, options)
        rope.frequencies()  # refuses what it cannot compute now rather than after the weights are read
        return rope

    def window(self) -> int:
        """sliding_window of the config, 0 where there is none."""
        return self.config.size("sliding_window", 1 << 30) if self.config.get("sliding_window") else 0

    def _natural_len(self) -> int:
        """max_position_embeddings; for YaRN at least the trained length times its factor, as its authors' configs mean it."""
        _, kind, options = self.config.rope("full_attention")
        trained, factor = options.get("original_max_position_embeddings"), options.get("factor")
        if kind == "yarn" and isinstance(trained, int) and isinstance(factor, (int, float)) and 1 <= factor < 10_000:
            return max(self.trained, int(trained * factor))
        return self.trained
