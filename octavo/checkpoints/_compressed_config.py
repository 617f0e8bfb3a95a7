"""The quantization_config of compressed-tensors: which modules are quantized, and to what.

A group names its modules by class ("Linear"), by regular expression ("re:...") or by name, and says what becomes of weights and inputs; `ignore` is of the
same kind. Where several groups name a module, names go before expressions, and those before classes, as in the library.
Source: compressed_tensors.quantization (QuantizationConfig, QuantizationArgs) and compressed_tensors.utils.match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckpointError, SchemeError
from ..schemes import TensorSpec
from ..schemes._types import default_spec
from ._json import shown
from ._patterns import Pattern, PatternError, compiled

FORMATS = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized",
           "mxfp8-quantized", "mixed-precision")
STATUS = (None, "compressed", "frozen")
LINEAR = ("Linear", "LinearBase", "ColumnParallelLinear", "RowParallelLinear")
EMBEDDING = ("Embedding", "VocabParallelEmbedding")
ROUTERS = ("gate", "router", "shared_expert_gate")
MOST_TARGETS = 20_000
FOLDED = ("weight_input", "weight_output")  # places of transforms that are part of the stored weights
# What each format holds; None: whatever a byte holds.
INTS = tuple(f"int{bits}" for bits in range(2, 9))
HOLDS = {"int-quantized": INTS, "pack-quantized": INTS, "float-quantized": ("fp8e4m3",), "nvfp4-pack-quantized": ("nvfp4",),
         "mxfp4-pack-quantized": ("mxfp4",), "mxfp8-quantized": ("mxfp8",)}


@dataclass(frozen=True)
class Target:
    """Which modules one entry of `targets` or `ignore` names."""

    text: str
    pattern: Pattern | None

    def rank(self, module: str, near: bool = False) -> int | None:
        """0 for the module's name, 1 for an expression that it begins with, 2 for its class; None where it is not named.

        near: the names of the file may lack what stands before them in the model, or the other way (a language model within a larger one).
        """
        if self.pattern is not None:
            return 1 if self.pattern.begins(module) or (near and self.pattern.within(module)) else None
        if self.text == module or (near and (module.endswith(f".{self.text}") or self.text.endswith(f".{module}"))):
            return 0
        kinds = EMBEDDING if module.endswith("embed_tokens") else LINEAR
        return 2 if self.text in kinds else None


@dataclass(frozen=True)
class Group:
    """Weights and inputs of the modules that `targets` name. `weight` None: they are not quantized.

    static    the stored tensor that their inputs need ("input_scale"), None where scales are computed as inputs come
    outputs   the config wants outputs quantized too
    """

    name: str
    targets: tuple[Target, ...]
    format: str | None
    weight: Mapping[str, Any] | None
    activation: TensorSpec | None
    static: str | None = None
    outputs: bool = False


@dataclass(frozen=True)
class Settings:
    where: str
    groups: tuple[Group, ...]
    ignore: tuple[Target, ...]
    cache: TensorSpec | None

    def group(self, module: str) -> Group | None:
        """The group of a quantized module, None where none names it or it is ignored."""
        if self._ranks(module, self.ignore):
            return None
        found = self._best(module) or self._best(module, near=True)
        return found[1] if found else None

    def expected(self, module: str) -> Group | None:
        """The group whose weight this unquantized module should have; None where it may well be unquantized.

        A router is no Linear layer in some models, and one in others: only its name says that it should be quantized.
        """
        if self._ranks(module, self.ignore, near=True):
            return None
        found = self._best(module)
        if found is None or found[1].weight is None or (found[0] == 2 and module.rpartition(".")[2] in ROUTERS):
            return None
        return found[1]

    def ignored(self, module: str) -> bool:
        return bool(self._ranks(module, self.ignore))

    def _best(self, module: str, near: bool = False) -> tuple[int, Group] | None:
        ranked = [(rank, place) for place, group in enumerate(self.groups) for rank in self._ranks(module, group.targets, near)]
        return (min(ranked)[0], self.groups[min(ranked)[1]]) if ranked else None

    def _ranks(self, module: str, targets: Sequence[Target], near: bool = False) -> list[int]:
        try:
            return [rank for target in targets if (rank := target.rank(module, near)) is not None]
        except PatternError as error:
            raise CheckpointError(f"module {shown(module)} cannot be looked up in the groups: {error}", where=self.where) from None


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
    if (transform := _running(quantization.get("transform_config"))) is not None:
        raise wrong(f"transform_config asks for transforms of activations at run time (rotation {transform}), which are not computed here",
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
    if weights and (token := number_format(weights, f"{where}: weights", form)) not in HOLDS.get(form or "", (token,)):
        raise CheckpointError(f"format is {form}, which does not hold {token}", where=where)
    activation = _inputs(inputs, f"{where}: input_activations") if inputs else None
    static = None
    if inputs and activation is not None and inputs.get("dynamic") in (False, None, "local"):
        static = "input_global_scale" if activation.format == "nvfp4" else "input_scale"
    return Group(name, _targets(group.get("targets") or [], where), form, weights or None, activation, static, bool(group.get("output_activations")))


def _running(transforms: Any) -> str | None:
    """The first transform that is computed as the model runs; None where all are part of the weights, or there are none."""
    groups = transforms.get("config_groups") if isinstance(transforms, dict) else None
    if not groups:
        return None
    if not isinstance(groups, dict):
        return shown(groups)
    for name, group in groups.items():
        places = group.get("apply") if isinstance(group, dict) else None
        if not isinstance(places, list) or not all(isinstance(place, dict) and place.get("location") in FOLDED for place in places):
            return shown(name)
    return None


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


def strategy_of(arguments: Mapping[str, Any]) -> Any:
    """The strategy, or what the library infers where none is named."""
    strategy, group = arguments.get("strategy"), arguments.get("group_size")
    if strategy is None:
        return "tensor" if group is None else "channel" if group == -1 else "group"
    return strategy.lower() if isinstance(strategy, str) else strategy


def number_format(arguments: Mapping[str, Any], where: str, form: str | None = None) -> str:
    """The token of what num_bits, type, scale_dtype and the format name; FP4 of older configs, which do not, by its group_size as the library does."""
    bits, kind = arguments.get("num_bits", 8), arguments.get("type", "int")
    kind = kind.lower() if isinstance(kind, str) else kind
    if kind == "int" and type(bits) is int and 2 <= bits <= 8:
        return f"int{bits}"
    micro = arguments.get("scale_dtype") in ("torch.uint8", "uint8") or (bits == 4 and arguments.get("group_size") == 32) or (form or "").startswith("mxfp")
    known = {(8, False): "fp8e4m3", (8, True): "mxfp8", (4, True): "mxfp4", (4, False): "nvfp4"}
    if kind != "float" or type(bits) is not int or (bits, micro) not in known:
        raise CheckpointError(f"{shown(bits)[1:-1]} bits of type {shown(kind)} are not read", where=where,
                              remedy="read are: int of 2 to 8 bits, float of 4 and 8")
    return known[bits, micro]


def _inputs(arguments: Mapping[str, Any], where: str, cache: bool = False) -> TensorSpec:
    """What inputs or the cache are quantized to."""
    token, strategy = number_format(arguments, where), strategy_of(arguments)
    dynamic = arguments.get("dynamic", False) not in (False, None)
    try:
        if token in ("nvfp4", "mxfp4", "mxfp8"):
            return TensorSpec(token, "group", {"nvfp4": 16}.get(token, 32), scale_format="fp8e4m3" if token == "nvfp4" else "e8m0", dynamic=dynamic)
        symmetric = arguments.get("symmetric", True) is not False
        if strategy in ("group", "tensor_group"):
            return TensorSpec(token, "group", size(arguments, where), symmetric=symmetric, dynamic=dynamic)
        if cache and (strategy == "token" or (strategy == "attn_head" and not dynamic)):  # of the cache: per token and head, or one stored for each head
            return replace(default_spec(token, "cache"), symmetric=symmetric, dynamic=strategy == "token")
        if strategy == "token":
            return TensorSpec(token, "token", symmetric=symmetric, dynamic=True)
        if strategy in ("tensor", "attn_head") or (strategy == "channel" and cache):  # scales of channels are told by `notes`
            return TensorSpec(token, "tensor", symmetric=symmetric, dynamic=dynamic)
    except SchemeError as error:
        raise CheckpointError(error.what, where=where) from None
    raise CheckpointError(f"strategy is {shown(strategy)}, read are: tensor, token, group, tensor_group", where=where)
