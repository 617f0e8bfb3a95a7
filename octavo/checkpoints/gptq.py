"""gptq: weights of 2, 3, 4 or 8 bits as AutoGPTQ, GPTQModel and Optimum write them.

What it is: per linear layer `qweight` (packed along the inputs), `qzeros`, `scales` and `g_idx`, the group of each input. In `gptq` (v1) files qzeros
hold the zero point minus one, in `gptq_v2` the zero point. With act-order (desc_act) a group's inputs are spread over the row. `gemm` is AWQ's layout,
which GPTQModel writes under this method too.
When to choose it: 4-bit weights that vLLM, SGLang, transformers and GPTQModel load; v1 for symmetric weights (every reader knows it), v2 for zero points.
Limits: no Marlin, BitBLAS, planar (gptq_p) or other repacked layouts. A symmetric file whose zero points are all one off the midpoint is refused: it was
written in the other convention than its config says. Zero points of 0 in v1 (stored as -1) are undone as their maker made them: GPTQModel takes one off whole
words, with borrows; others off each field. `sym` and `desc_act` are claims: what zero points and g_idx say is what counts, and `notes` tells.
Source: GPTQModel's documentation and tensors; arXiv 2210.17323.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._folder import quant_method
from ._gptq_writer import GptqWriter
from ._int_layers import WORDS, Findings, Setting, awq_layer, gptq_layer, group_size, open_integers, prefixes, truth, whole
from ._json import shown
from ._patterns import Pattern, PatternError, compiled
from ._quantized import Layer, QuantizedCheckpoint, Raw
from .base import WriterOptions

METHOD = "gptq"
FORMATS = {"gptq": "minus_one", "gptq_v2": "plain"}
AWQ_LAYOUT = "gemm"  # GPTQModel 7 writes AWQ's layout under quant_method gptq too
BITS = (2, 3, 4, 8)
MOST_PATTERNS = 200


def _layers(quantization: dict[str, Any], raw: Raw, findings: Findings) -> Iterator[Layer]:
    where = f"{raw.path / 'config.json'}: quantization_config"
    found = _format(quantization, where)
    base, dynamic = _setting(found, quantization, where), _dynamic(quantization, where)
    for prefix in prefixes(raw, "qweight", ("qzeros", "g_idx")):
        try:
            setting = _of_module(prefix[:-1], base, dynamic, where)
        except PatternError as error:
            raise raw.error(f"{prefix}qweight", f"cannot be looked up in `dynamic`: {error}") from None
        if setting is None:
            raise raw.error(f"{prefix}qweight", "is quantized, but `dynamic` in the config says that its layer is not")
        if setting.bits == 3 and setting.words != "int32":
            raise CheckpointError(f"3 bits in words of {setting.words} are not read", where=where)
        if found == AWQ_LAYOUT and (setting.bits, setting.words) != (4, "int32"):
            raise CheckpointError(f"{setting.bits} bits in words of {setting.words} are not read in layout {AWQ_LAYOUT}", where=where)
        yield (awq_layer if found == AWQ_LAYOUT else gptq_layer)(raw, prefix, setting, f"gptq {found}" if found == AWQ_LAYOUT else found, findings)


def _format(quantization: dict[str, Any], where: str) -> str:
    """The checkpoint format that the config names; v1 where it names none."""
    named = {str(quantization[key]).lower() for key in ("checkpoint_format", "format") if quantization.get(key) is not None}
    if quantization.get("is_marlin_format"):
        named.add("marlin")
    if len(named) > 1:
        raise CheckpointError(f"names two formats, {' and '.join(shown(n) for n in sorted(named))}", where=where)
    found = named.pop() if named else METHOD
    if found not in (*FORMATS, AWQ_LAYOUT):
        raise CheckpointError(f"checkpoint_format is {shown(found)}, a layout for one kind of GPU that is not read", where=where,
                              remedy="take the model in checkpoint_format gptq or gptq_v2, or save it again in one of them with GPTQModel")
    return found


def _setting(found: str, quantization: dict[str, Any], where: str) -> Setting:
    kept_in = str(quantization.get("pack_dtype") or "int32").removeprefix("torch.")
    if kept_in not in WORDS:
        raise CheckpointError(f"pack_dtype is {shown(kept_in)}, known: {', '.join(WORDS)}", where=where)
    zeros = FORMATS.get(found, "plain")
    if zeros == "minus_one" and _maker(quantization).startswith("gptqmodel"):
        zeros = "minus_one_carried"
    other = next(name for name in FORMATS if name != found)
    return _changed(Setting(0, -1, zeros=zeros, words=kept_in, remedy=f"if the model is good elsewhere, set checkpoint_format to {other!r} in config.json"),
                    quantization, where)


def _changed(setting: Setting, values: dict[str, Any], where: str) -> Setting:
    """`setting` with what `values` (the config, or an entry of `dynamic`) say."""
    return replace(setting, bits=whole(values, ("bits",), setting.bits or None, "2, 3, 4 or 8", lambda v: v in BITS, where),
                   group_size=group_size(values, ("group_size",), setting.group_size if setting.bits else 128, where),
                   sym=truth(values, "sym", setting.sym, where), desc_act=truth(values, "desc_act", setting.desc_act, where))


def _maker(quantization: dict[str, Any]) -> str:
    meta = quantization.get("meta")
    maker = meta.get("quantizer", "") if isinstance(meta, dict) else ""
    return str(maker[0] if isinstance(maker, list) and maker else maker).lower()


def _dynamic(quantization: dict[str, Any], where: str) -> list[tuple[Pattern, dict[str, Any] | None]]:
    """The entries of `dynamic`: (modules that begin so, what is changed for them or None where they are not quantized ("-:"))."""
    dynamic = quantization.get("dynamic") or {}
    if not isinstance(dynamic, dict) or len(dynamic) > MOST_PATTERNS or not all(isinstance(v, dict) for v in dynamic.values()):
        raise CheckpointError(f"dynamic is no object of at most {MOST_PATTERNS} objects", where=where)
    found: list[tuple[Pattern, dict[str, Any] | None]] = []
    for text, values in dynamic.items():
        try:
            found.append((compiled(text[2:] if text[:2] in ("+:", "-:") else text), None if text.startswith("-:") else values))
        except PatternError as error:
            raise CheckpointError(f"dynamic {shown(text)}: {error}", where=where) from None
    return found


def _of_module(name: str, base: Setting, dynamic: list[tuple[Pattern, dict[str, Any] | None]], where: str) -> Setting | None:
    """The setting of a module after the first entry that names it; None where that says "not quantized"."""
    for pattern, values in dynamic:
        if pattern.begins(name):
            return None if values is None else _changed(base, values, where)
    return base


class GptqCodec:
    def writer(self, options: WriterOptions) -> GptqWriter:
        return GptqWriter(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_integers(path, METHOD, _layers)


CODEC = GptqCodec()
