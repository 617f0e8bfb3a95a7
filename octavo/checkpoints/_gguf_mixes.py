"""Which type each tensor of a GGUF file gets: a plain type, or one of llama.cpp's mixes (Q4_K_M ...), which spend more bits where it pays.

Source: llama.cpp, src/llama-quant.cpp (`llama_tensor_get_type`) and its fallbacks for rows that are no whole blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ._gguf_pack import BLOCK

# Name -> (type of most tensors, llama.cpp's number of it)
VARIANTS = {
    "F32": ("F32", 0), "F16": ("F16", 1), "BF16": ("BF16", 32), "Q4_0": ("Q4_0", 2), "Q4_1": ("Q4_1", 3), "Q5_0": ("Q5_0", 8), "Q5_1": ("Q5_1", 9),
    "Q8_0": ("Q8_0", 7), "Q2_K": ("Q2_K", 10), "Q2_K_S": ("Q2_K", 21), "Q3_K_S": ("Q3_K", 11), "Q3_K_M": ("Q3_K", 12), "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14), "Q4_K_M": ("Q4_K", 15), "Q5_K_S": ("Q5_K", 16), "Q5_K_M": ("Q5_K", 17), "Q6_K": ("Q6_K", 18), "IQ4_NL": ("IQ4_NL", 25),
    "TQ1_0": ("TQ1_0", 36), "TQ2_0": ("TQ2_0", 37), "MXFP4": ("MXFP4", 38),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.weight")


@dataclass(frozen=True)
class Model:
    """layers; query heads for each key head; whether the embedding is the output layer too."""

    layers: int
    sharing: int
    tied: bool


def type_of(variant: str, name: str, width: int, model: Model) -> str:
    """The type of a matrix under its GGUF name, of a known variant."""
    usual = VARIANTS[variant][0]
    if usual in ("F32", "F16", "BF16"):
        return usual
    kind = _wished(variant, usual, name, width, model)
    if width % BLOCK[kind][0]:
        kind = _FALLBACK.get(kind, kind)
    return kind if width % BLOCK[kind][0] == 0 else "F16"


def _wished(variant: str, usual: str, name: str, width: int, model: Model) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and model.tied):
        return "Q8_0" if usual in ("Q8_0", "MXFP4") or width % BLOCK[usual][0] else "Q6_K"
    if name == "token_embd.weight":
        return "Q4_K" if usual in ("TQ1_0", "TQ2_0") else "Q8_0" if usual == "MXFP4" else usual
    match = _LAYER.fullmatch(name)
    if match is None:
        return usual
    layer, part = int(match[1]), match[2]
    if part == "attn_v":
        return _values(variant, usual, layer, model)
    if part == "ffn_down":
        return _down(variant, usual, layer, model)
    if part == "attn_output":
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(variant, usual)
    return usual


def _favoured(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _values(variant: str, usual: str, layer: int, model: Model) -> str:
    many = model.sharing >= 4
    if variant in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _favoured(layer, model.layers) else usual
    return {"Q2_K": "Q4_K" if many else "Q3_K", "Q2_K_S": "Q4_K" if many else usual, "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K", "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < 4 else usual, "IQ4_NL": "Q5_K" if many else usual}.get(variant, usual)


def _down(variant: str, usual: str, layer: int, model: Model) -> str:
    early = layer < model.layers // 8
    if variant in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _favoured(layer, model.layers) else usual
    return {"Q2_K": "Q3_K", "Q2_K_S": "Q4_K" if early else usual, "Q3_K_M": "Q5_K" if layer < model.layers // 16 else "Q4_K", "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if early else usual, "IQ4_NL": "Q5_K" if early else usual}.get(variant, usual)
