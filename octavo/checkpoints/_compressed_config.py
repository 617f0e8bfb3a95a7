"""The quantization_config of compressed-tensors: which modules are quantized, and to what.

A group names its modules by class ("Linear"), by regular expression ("re:...") or by name, and says what becomes of weights and inputs; `ignore` is of the
same kind. Where several groups name a module, names go before expressions, and those before classes, as in the library.
Source: compressed_tensors.quantization (QuantizationConfig, QuantizationArgs) and compressed_tensors.utils.match.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, SchemeError
from ..schemes import TensorSpec
from ._json import shown
from ._patterns import Pattern, PatternError, compiled

FORMATS = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
           "mxfp8-quantized", "mixed-precision")
STATUS = (None, "compressed", "frozen")
LINEAR = ("Linear", "LinearBase", "ColumnParallelLinear", "RowParallelLinear")
EMBEDDING = ("Embedding", "VocabParallelEmbedding")
MOST_TARGETS = 20_000


@dataclass(frozen=True)
class Target:
    """Which modules one entry of `targets` or `ignore` names."""

    text: str
    pattern: Pattern | None

    def rank(self, module: str) -> int | None:
        """0 for the module's name, 1 for an expression that it begins with, 2 for its class; None where it is not named."""
        if self.pattern is not None:
            return 1 if self.pattern.begins(module) else None
        if self.text == module:
            return 0
        kinds = EMBEDDING if module.endswith("embed_tokens") else LINEAR
        return 2 if self.text in kinds else None


@dataclass(frozen=True)
class Group:
    """Weights and inputs of the modules that `targets` name. `weight` None: they are not quantized. `micro`: E8M0 scales."""

    name: str
    targets: tuple[Target, ...]
    format: str | None
    weight: Mapping[str, Any] | None
    activation: TensorSpec | None


@dataclass(frozen=True)
class Settings:
    where: str
    groups: tuple[Group, ...]
    ignore: tuple[Target, ...]
    cache: TensorSpec | None

    def group(self, module: str) -> Group | None:
        """The group of a module, None where none names it or it is ignored."""
        try:
            if self.ignored(module):
                return None
            ranked = [(rank, place) for place, group in enumerate(self.groups) for target in group.targets if (rank := target.rank(module)) is not None]
        except PatternError as error:
            raise CheckpointError(f"module {shown(module)} cannot be looked up in the groups: {error}", where=self.where) from None
        return self.groups[min(ranked)[1]] if ranked else None

    def ignored(self, module: str) -> bool:
        return any(target.rank(module) is not None for target in self.ignore)


def read_settings(quantization: Mapping[str, Any], where: str) -> Settings:
    """Raises CheckpointError for what is not read, or not as the library writes it."""
    def wrong(what: str, remedy: str = "fetch the model again") -> CheckpointError:
        return CheckpointError(what, where=where, remedy=remedy)

    found = quantization.get("format")
    if found not in (None, *FORMATS):
        remedy = "take a model in one of the formats that are read" if found not in ("marlin-24", "sparse-24-bitmask", "sparse-bitmask") else (
            "take the dense model: sparse and Marlin layouts were dropped by compressed-tensors too")
        raise wrong(f"format is {shown(found)}, read are: {', '.join(FORMATS)}", remedy)
    if (status := quantization.get("quantization_status")) not in STATUS:
        raise wrong(f"quantization_status is {shown(status)}: the weights are not compressed", "save the model compressed (save_compressed=True)")
    sparsity = quantization.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format") not in (None, "dense"):
        raise wrong(f"sparsity_config has the format {shown(sparsity['format'])}, which is not read", "take the dense model")
    transforms = quantization.get("transform_config")
    if isinstance(transforms, dict) and transforms.get("config_groups"):
        raise wrong("transform_config asks for transforms of activations at run time (rotations), which are not computed here",
                    "take a model whose transforms are folded into the weights")
    groups = quantization.get("config_groups")
    groups = {} if groups is None else groups
    if not isinstance(groups, dict):
        raise wrong(f"config_groups is {shown(groups)}, not an object")
    read = tuple(_group(name, group, None if found == "mixed-precision" else found, f"{where}: config_groups: {shown(name)[1:-1]}")
                 for name, group in groups.items())
    scheme = quantization.get("kv_cache_scheme")
    if scheme is not None and not isinstance(scheme, dict):
        raise wrong(f"kv_cache_scheme is {shown(scheme)}, not an object")
    cache = _inputs(scheme, f"{where}: kv_cache_scheme", cache=True) if scheme else None
    return Settings(where, read, _targets(quantization.get("ignore") or [], f"{where}: ignore"), cache)


def _group(name: str, group: Any, default: str | None, where: str) -> Group:
    if not isinstance(group, dict):
        raise CheckpointError("is no group", where=where)
    weights, inputs = group.get("weights"), group.get("input_activations")
    for part in (weights, inputs):
        if part is not None and not isinstance(part, dict):
            raise CheckpointError(f"holds {shown(part)} where arguments of quantization belong", where=where)
    form = group.get("format") or default
    if form not in (None, *FORMATS):
        raise CheckpointError(f"format is {shown(form)}, read are: {', '.join(FORMATS)}", where=where)
    return Group(name, _targets(group.get("targets") or [], where), form, weights, _inputs(inputs, f"{where}: input_activations") if inputs else None)


def _targets(texts: Any, where: str) -> tuple[Target, ...]:
    if not isinstance(texts, list) or len(texts) > MOST_TARGETS or not all(isinstance(text, str) for text in texts):
        raise CheckpointError("holds no list of names", where=where)
    try:
        return tuple(Target(text, compiled(text[3:]) if text.startswith("re:") else None) for text in texts)
    except PatternError as error:
        raise CheckpointError(f"holds a regular expression that is not read: {error}", where=where) from None


def size(arguments: Mapping[str, Any], where: str) -> int:
    """group_size, a whole number above 0."""
    value = arguments.get("group_size")
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise CheckpointError(f"group_size is {shown(value)}, not a whole number above 0", where=where)
    return value


def number_format(arguments: Mapping[str, Any], where: str) -> str:
    """The token of what num_bits, type, group_size and scale_dtype name."""
    bits, kind = arguments.get("num_bits"), arguments.get("type", "int")
    if kind == "int" and type(bits) is int and 2 <= bits <= 8:
        return f"int{bits}"
    micro = arguments.get("scale_dtype") in ("torch.uint8", "uint8") or (bits == 4 and arguments.get("group_size") == 32)
    known = {(8, False): "fp8e4m3", (8, True): "mxfp8", (4, True): "mxfp4", (4, False): "nvfp4"}
    if kind != "float" or type(bits) is not int or (bits, micro) not in known:
        raise CheckpointError(f"{shown(bits)[1:-1]} bits of type {shown(kind)} are not read", where=where,
                              remedy="read are: int of 2 to 8 bits, float of 4 and 8")
    return known[bits, micro]


def _inputs(arguments: Mapping[str, Any], where: str, cache: bool = False) -> TensorSpec:
    """What inputs or the cache are quantized to."""
    token, strategy = number_format(arguments, where), arguments.get("strategy") or "tensor"
    dynamic = arguments.get("dynamic", False) not in (False, None)
    try:
        if token in ("nvfp4", "mxfp4", "mxfp8"):
            return TensorSpec(token, "group", {"nvfp4": 16}.get(token, 32), scale_format="fp8e4m3" if token == "nvfp4" else "e8m0", dynamic=dynamic)
        symmetric = arguments.get("symmetric", True) is not False
        if strategy in ("group", "tensor_group"):
            return TensorSpec(token, "group", size(arguments, where), symmetric=symmetric, dynamic=dynamic)
        if strategy == "token":
            return TensorSpec(token, "token", symmetric=symmetric, dynamic=True)
        if strategy in ("tensor", "attn_head") or (strategy == "channel" and cache):  # finer scales of the cache are told by `notes`
            return TensorSpec(token, "tensor", symmetric=symmetric, dynamic=dynamic)
    except SchemeError as error:
        raise CheckpointError(error.what, where=where) from None
    raise CheckpointError(f"strategy is {shown(strategy)}, read are: tensor, token, group, tensor_group", where=where)
