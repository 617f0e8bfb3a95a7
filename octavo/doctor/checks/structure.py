"""Structure: does the model have the tensors that its config asks for, of the shapes it asks for, and no others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase

from ..findings import Disorder, Finding
from ..patient import CODES, INPUT_SCALES, SCALES, Patient
from . import Check
from .shapes import logical_shape

REFETCH = "the checkpoint is incomplete, or its config is of another model: fetch both again"
MISSING = Disorder("missing_tensor", "error", "a tensor that the model needs is not there; some engines then run on random numbers", REFETCH)
LAYER = Disorder("uneven_layers", "error", "a layer lacks a tensor that its neighbours have", REFETCH)
EXTRA = Disorder("extra_tensor", "error", "a tensor that the model has no use for: the model computes something else than was trained",
                 "the config lacks the field that says so (attention_bias, a norm ...), or the tensor is a leftover: remove it")
PART = Disorder("missing_part", "error", "a quantized weight lacks one of its tensors", "the checkpoint is incomplete: fetch it again, or quantize again")
TWICE = Disorder("stored_twice", "error", "a weight is stored plain and quantized: which one counts depends on the reader", "remove the one that is not meant")
SHAPE = Disorder("wrong_shape", "error", "a tensor does not have the shape that the config asks for", "weights and config are not of the same model")
COUNT = Disorder("layer_count", "error", "config and files do not have the same number of layers", REFETCH)
TIED = Disorder("tied_head_mismatch", "warning", "the config ties the output layer to the embedding, but another one is stored",
                "set tie_word_embeddings to false if the stored one was trained; engines that tie ignore it silently")
_LAYER = re.compile(r"^(.*\blayers\.)(\d+)\.(.+)$")
# If a weight has the part on the left, it needs those on the right (any of a tuple).
NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "qweight": (("scales",), ("qzeros",)), "qzeros": (("qweight",),), "scales": (("qweight", "weight"),), "g_idx": (("qweight",),),
    "weight_packed": (("weight_scale",),), "weight_scale": (("weight", "weight_packed"),), "weight_zero_point": (("weight_scale",),),
    "weight_scale_inv": (("weight",),), "weight_scale_2": (("weight_scale",),), "weight_global_scale": (("weight_scale",),), "SCB": (("weight",),),
    "weight.absmax": (("weight",), ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"), ("weight.quant_map",)),
    "weight.nested_absmax": (("weight.absmax",), ("weight.nested_quant_map",)), "_blocks": (("_scales",),), "_scales": (("_blocks",),),
}
QUANTIZED_TYPES = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F4")
KNOWN = {*CODES, *SCALES, *INPUT_SCALES, *NEEDS, "bias", "weight_shape", "weight_g_idx", "weight_format", "pre_quant_scale", "input_zero_point",
         "svdquant_lora_a", "svdquant_lora_b", "weight.nested_quant_map", "weight.quant_map", "output_scale", "_bias"}
CACHE = re.compile(r"\.(?:[kvq]_(?:scale|bias|zero_point)|kv_scale|(?:k|v|key|value)_cache_scale|(?:key|value)_scale|prob_scale|prob_output_scale|"
                   r"[kv]_proj\.output_scale|cache[kv]_matmul\.activation_(?:scale|zero_point))$")


def check(patient: Patient) -> Iterator[Finding]:
    yield from _parts(patient)
    yield from _whole(patient)
    yield from _shapes(patient)
    yield from _layers(patient)
    yield from _tied(patient)


def _parts(patient: Patient) -> Iterator[Finding]:
    tensors = patient.survey.tensors
    for module, parts in patient.weights.items():
        for part, name in parts.items():
            for choices in NEEDS.get(part, ()):
                if not any(choice in parts for choice in choices):
                    yield PART(f"{module}.{choices[0]}".replace("._", "_"), f"{name} is there")
        plain = parts.get("weight")
        if plain is not None and tensors[plain].dtype in QUANTIZED_TYPES and len(tensors[plain].shape) == 2 and not any(part in parts for part in SCALES):
            yield PART(f"{module}.weight_scale", f"{plain} is of type {tensors[plain].dtype} and has no scale")
        if plain is not None and ("qweight" in parts or "weight_packed" in parts):
            yield TWICE(plain, f"{parts.get('qweight') or parts['weight_packed']} is there too")
        if "weight_packed" in parts and tensors[parts["weight_packed"]].dtype == "I32" and "weight_shape" not in parts:
            yield PART(f"{module}.weight_shape", f"{parts['weight_packed']} is there")


def _whole(patient: Patient) -> Iterator[Finding]:
    """Against the architecture, where it is known."""
    if patient.model is None or not patient.wanted or not patient.held:
        return
    held = patient.held
    for name, want in patient.wanted.items():
        if name not in held:
            yield MISSING(name, f"expected {list(want.shape)}")
    canonical = patient.model.canonical
    ignored = (*patient.model.ignored, *(("lm_head.weight",) if patient.model.tied else ()))
    for module, parts in (patient.weights or {name.rpartition(".")[0]: {name.rpartition(".")[2]: name} for name in patient.names}).items():
        for part, name in parts.items():
            whole = canonical(f"{module}.bias" if part == "bias" else f"{module}.weight" if part in KNOWN or part.startswith("weight.") else name)
            if whole in patient.wanted or name in patient.used or CACHE.search(name) or any(
                    fnmatchcase(canonical(n), pattern) for pattern in ignored for n in (whole, name)):
                continue
            shape = patient.survey.tensors[name].shape if name in patient.survey.tensors else ()
            yield EXTRA(name, f"{list(shape)}, no use in a model of type {patient.text_config.get('model_type')}")


def _shapes(patient: Patient) -> Iterator[Finding]:
    by_name = {}
    for module, parts in patient.weights.items():
        canonical = patient.model.canonical if patient.model is not None else str
        by_name[canonical(f"{module}.weight")] = logical_shape(patient, parts)
        if "bias" in parts:
            by_name[canonical(parts["bias"])] = patient.survey.tensors[parts["bias"]].shape
    if not patient.survey.tensors and patient.checkpoint is not None:
        by_name = {name: info.shape for name, info in patient.checkpoint.tensors.items()}
    for name, want in patient.wanted.items():
        shape = by_name.get(name)
        if shape is not None and tuple(shape) != want.shape:
            yield SHAPE(patient.held.get(name, name), f"{list(shape)}, the config asks for {list(want.shape)}")


def _layers(patient: Patient) -> Iterator[Finding]:
    """Without knowing the architecture: neighbours of one kind hold the same."""
    inside: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in patient.held:
        if (match := _LAYER.match(name)) and len(match[2]) < 6:
            inside[match[1]][int(match[2])].add(match[3])
    for prefix, layers in inside.items():
        count = patient.number("num_hidden_layers")
        if count is not None and "vis" not in prefix and max(layers) + 1 < count:
            yield COUNT(f"{prefix}{max(layers)}", f"num_hidden_layers is {count}, the files have {max(layers) + 1}")
        if patient.wanted:
            continue
        common = Counter(part for parts in layers.values() for part in parts)
        for number, parts in sorted(layers.items()):
            neighbours = [layers[n] for n in (number - 1, number + 1) if n in layers]
            for part in sorted(common):
                if part not in parts and len(neighbours) == 2 and all(part in other for other in neighbours):
                    yield LAYER(f"{prefix}{number}.{part}", f"layers {number - 1} and {number + 1} have it")


def _tied(patient: Patient) -> Iterator[Finding]:
    held, survey = patient.held, patient.survey
    head, table = held.get("lm_head.weight"), held.get("model.embed_tokens.weight")
    if not patient.text_config.get("tie_word_embeddings") or head is None or table is None or head not in survey.tensors or table not in survey.tensors:
        return
    one, other = survey.tensors[head], survey.tensors[table]
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        yield TIED(head, f"{one.dtype} {list(one.shape)} beside {other.dtype} {list(other.shape)}")
    elif any(bool((a != b).any()) for a, b in zip(survey.bytes(head), survey.bytes(table), strict=True)):
        yield TIED(head, "the numbers differ")


CHECK = Check(check, (MISSING, LAYER, EXTRA, PART, TWICE, SHAPE, COUNT, TIED))
