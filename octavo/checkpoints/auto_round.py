"""auto_round: integer weights as Intel's AutoRound exports them.

What it is: GPTQ's or AWQ's tensors, said by `packing_format`: `auto_round:auto_gptq` stores zero points minus one, `auto_round` and
`auto_round:gptqmodel` as they are, `auto_round:auto_awq` is AWQ's gemm layout. Bits and groups may differ from layer to layer (`extra_config`).
When to choose it: where a model is published in it.
Limits: 2 to 8 bits of integers (AWQ's layout: 4 to 7). Not read are packings for FP8, MXFP4, MXFP8 and NVFP4 (AutoRound exports those as
compressed-tensors too), quantized activations, GGUF-like scales of scales, and rotated models.
Source: AutoRound's export_to_autoround and bit_packing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._folder import quant_method
from ._int_layers import Findings, Setting, awq_layer, gptq_layer, group_size, open_integers, prefixes, truth, whole
from ._json import shown
from ._patterns import Pattern, PatternError, compiled
from ._quantized import Layer, QuantizedCheckpoint, Raw

METHOD = "auto_round"
GPTQ, RAW_GPTQ, AWQ = "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq"
PACKINGS = {"auto": GPTQ, GPTQ: GPTQ, "auto_round:gptq": GPTQ, "auto_round": RAW_GPTQ, RAW_GPTQ: RAW_GPTQ, AWQ: AWQ, "auto_round:awq": AWQ}
BITS = {GPTQ: range(2, 9), RAW_GPTQ: range(2, 9), AWQ: range(4, 8)}
MOST_LAYERS = 100_000
MOST_PATTERNS = 200


def _layers(quantization: dict[str, Any], raw: Raw, findings: Findings) -> Iterator[Layer]:
    where = f"{raw.path / 'config.json'}: quantization_config"
    named = quantization.get("packing_format") or GPTQ
    packing = PACKINGS.get(named) if isinstance(named, str) else None
    if packing is None:
        raise CheckpointError(f"packing_format is {shown(named)}, which is not read", where=where, remedy=(
            "export the model from AutoRound in the format llm_compressor or auto_gptq, or take the unquantized model"))
    base = Setting(0, -1, zeros="minus_one" if packing == GPTQ else "plain",
                   remedy="packing_format and tensors do not fit each other: fetch the model again, or export it again with a newer AutoRound")
    base = _changed(base, quantization, packing, where)
    exact, patterns = _extra(quantization, where)
    make = awq_layer if packing == AWQ else gptq_layer
    for prefix in prefixes(raw, "qweight", ("qzeros", "g_idx")):
        name = prefix[:-1]
        try:
            extra = exact.get(name) or next((values for pattern, values in patterns if pattern.within(name)), {})
        except PatternError as error:
            raise raw.error(f"{prefix}qweight", f"cannot be looked up in extra_config: {error}") from None
        yield make(raw, prefix, _changed(base, extra, packing, f"{where}: extra_config {shown(name)}"), f"auto-round {packing.rpartition(':')[2]}", findings)


def _changed(setting: Setting, values: dict[str, Any], packing: str, where: str) -> Setting:
    """`setting` with what `values` (the config, or an entry of extra_config) say. Raises CheckpointError for anything but weights of integers."""
    kind, inputs = values.get("data_type") or "int", values.get("act_bits")
    if not (isinstance(kind, str) and kind.startswith("int")):
        raise CheckpointError(f"data_type is {shown(kind)}: only integers are read", where=where, remedy="take the model in another format")
    if inputs is not None and not (type(inputs) is int and inputs >= 16):
        raise CheckpointError(f"act_bits is {shown(inputs)}: only 16-bit activations are read", where=where, remedy="take the model in another format")
    for key in ("rotation_config", "super_bits", "super_group_size"):
        if values.get(key):
            raise CheckpointError(f"has {key}, which is not read", where=where, remedy="take the model in another format")
    allowed = BITS[packing]
    return replace(setting, bits=whole(values, ("bits",), setting.bits or None, f"{allowed[0]} to {allowed[-1]}", lambda v: v in allowed, where),
                   group_size=group_size(values, ("group_size",), setting.group_size if setting.bits else 128, where),
                   sym=truth(values, "sym", setting.sym, where))


def _extra(quantization: dict[str, Any], where: str) -> tuple[dict[str, dict[str, Any]], list[tuple[Pattern, dict[str, Any]]]]:
    """extra_config: (by module name, by expression that is found in the name)."""
    extra = quantization.get("extra_config") or {}
    if not isinstance(extra, dict) or len(extra) > MOST_LAYERS or not all(isinstance(v, dict) for v in extra.values()):
        raise CheckpointError(f"extra_config is no object of at most {MOST_LAYERS} objects", where=where)
    patterns: list[tuple[Pattern, dict[str, Any]]] = []
    for text, values in extra.items():
        if not set(text) & set("\\*+?^$|()[]{}"):
            continue
        if len(patterns) == MOST_PATTERNS:
            raise CheckpointError(f"extra_config holds more than {MOST_PATTERNS} expressions", where=where)
        try:
            patterns.append((compiled(text), values))
        except PatternError as error:
            raise CheckpointError(f"extra_config {shown(text)}: {error}", where=where) from None
    return extra, patterns


class AutoRoundCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and (quant_method(path) or "").replace("-", "_") == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_integers(path, METHOD, _layers)


CODEC = AutoRoundCodec()
