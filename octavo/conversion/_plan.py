"""What becomes of each tensor, decided before anything is written: as stored, exactly in another form, rounded, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .. import formats
from ..checkpoints import Checkpoint, FileWriter, InexactError, Part, TensorInfo, Writer, WriterOptions, writers
from ..checkpoints.writing import PlainWriter, held
from ..errors import CheckpointError, UsageError
from ..registry import lookup
from ..schemes import Plan, TensorSpec, plan_text, write_tensor
from ._pieces import first_piece

# What every format's convention leaves in 16 bits: the table of words, the output layer, routers (a few rows that decide everything), towers of other
# senses, and norms that are stored as matrices.
KEPT = ("*lm_head*", "*embed*", "*router*", "*.mlp.gate.weight", "*shared_expert_gate*", "*.block_sparse_moe.gate.weight", "*vision*", "*visual*",
        "*audio*", "*norm*")
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
REFUSALS_SHOWN = 3


@dataclass(frozen=True)
class Wish:
    """What the user asked for; see `convert`."""

    to: str
    quantization: str | None = None
    requantize: bool = False
    keep: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    dtype: str = ""
    shard_size: int = 5_000_000_000

    @property
    def target(self) -> str:
        return self.to.partition(":")[0]


@dataclass(frozen=True)
class Item:
    """One tensor of the source.

    rounded   why its numbers change, or "": they stay what they are
    spec      as it is written; None: the bytes move as they are
    writer    what lays it out and fills it; None with `spec`
    quantized it is one of the target's quantized weights
    """

    info: TensorInfo
    spec: TensorSpec | None
    writer: Writer | None
    parts: Mapping[str, Part]
    rounded: str = ""
    quantized: bool = False


@dataclass(frozen=True)
class Conversion:
    """The whole plan. `parts` holds everything that the files will hold, in the order of the source."""

    items: Sequence[Item]
    writer: Writer
    weights: Mapping[str, TensorSpec]
    kept: Sequence[str]
    parts: Mapping[str, Part]
    extras: Mapping[str, np.ndarray]
    activations: Mapping[str, TensorSpec]
    notes: Sequence[str] = field(default_factory=tuple)


class RefusedError(CheckpointError):
    """The target cannot hold what is stored, and rounding was not agreed to."""


def make_plan(checkpoint: Checkpoint, wish: Wish, inexact: Mapping[str, str], *, out_is_file: bool) -> Conversion:
    """The plan; `inexact`: weights that have turned out, in their numbers, not to fit, with the reason.

    Raises UsageError, SchemeError, or RefusedError that names the tensors and why.
    """
    infos, notes = _present(checkpoint)
    config = plain_config(checkpoint.config)
    chosen = {info.name for info in infos if _is_weight(info, wish)}
    specs, activations = _wanted(checkpoint, infos, chosen, wish)
    variant = wish.to.partition(":")[2]
    if wish.target == "safetensors":  # nothing but unquantized numbers
        variant = variant or wish.dtype
    cache, named = _cache(checkpoint, wish)
    scales: dict[str, np.ndarray] = {} if named else getattr(checkpoint, "cache_scales", dict)()
    options = WriterOptions(variant, config, specs, activations, _input_scales(checkpoint, wish), cache, scales, getattr(checkpoint, "fresh", False))
    kind = lookup("target", wish.target.replace("-", "_"), writers())
    writer: Writer = kind(options)
    if cache is not None and cache.quantized and (reason := writer.cache_why_not(cache, bool(scales))) is not None:
        written, computed = (f"C{write_tensor(one, 'cache')}" for one in (cache, replace(cache, granularity="token", size=0, dynamic=True)))
        if named or options.fresh:
            raise UsageError(f"{wish.target} cannot say that the key-value cache is {written}: {reason}", where=f"--to {wish.to}",
                             remedy=f"leave {written} out and give `octavo serve` --kv-cache {computed}, or write --to compressed-tensors or octavo")
        notes.append(f"the precision of the key-value cache ({written}) is not carried along: {reason}")
    usual = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "bf16")
    plain = PlainWriter(WriterOptions(wish.dtype, config), usual if wish.requantize else "fp32")
    if isinstance(writer, FileWriter) != out_is_file:
        kind_of = "one file: name it, with its ending (.gguf)" if isinstance(writer, FileWriter) else "a folder: leave the ending away"
        raise UsageError(f"{wish.target} is written as {kind_of}", where="OUT")
    items, refused = [], {}
    for info in infos:
        if info.spec is None or (_is_odd(info) and not isinstance(writer, FileWriter)):
            items.append(_moved(checkpoint, info, writer))
        elif isinstance(writer, (FileWriter, PlainWriter)) or info.name in specs:
            item = _weight(checkpoint, info, specs.get(info.name, info.spec), writer, inexact.get(info.name, ""))
            if item.rounded and not (wish.requantize or isinstance(writer, PlainWriter) or _agreed(info, item, specs, wish)):
                refused[info.name] = item.rounded
            items.append(item)
        else:
            items.append(_plain(info, plain))
    if refused:
        raise _refusal(checkpoint, wish, refused)
    weights = {item.info.name: item.spec for item in items if item.quantized and item.spec is not None}
    kept = [item.info.name for item in items if not item.quantized and len(item.info.shape) == 2 and item.info.name.endswith(".weight")]
    extras = writer.extras(weights, kept)
    parts: dict[str, Part] = {}
    for name, part in [*((n, p) for item in items for n, p in item.parts.items()), *((n, p) for n, (p, _) in extras.items())]:
        if parts.setdefault(name, part) != part:  # the experts of a stack share one
            raise CheckpointError(f"two different tensors would be named {name!r}", where=str(checkpoint.path), remedy="this model has no place in that format")
    return Conversion(items, writer, weights, kept, parts, {name: values for name, (_, values) in extras.items()}, activations, notes)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without what it says of quantization, wherever that stands."""
    return {key: plain_config(value) if key in ("text_config", "llm_config") and isinstance(value, dict) else value
            for key, value in config.items() if key not in ("quantization_config", "compression_config")}


def _present(checkpoint: Checkpoint) -> tuple[list[TensorInfo], list[str]]:
    """The tensors to convert. An output layer that repeats the embedding it is tied to is not written a second time."""
    notes = list(checkpoint.notes)
    infos = list(checkpoint.tensors.values())
    head, table = checkpoint.tensors.get("lm_head.weight"), checkpoint.tensors.get("model.embed_tokens.weight")
    if checkpoint.config.get("tie_word_embeddings") and head is not None and table is not None and head.spec == table.spec and head.shape == table.shape:
        if _same_numbers(checkpoint, head, table):
            infos.remove(head)
            notes.append("lm_head.weight repeats model.embed_tokens.weight, to which it is tied: written once")
        else:
            notes.append("lm_head.weight is said to be tied to model.embed_tokens.weight and is not equal to it: both are written")
    return infos, notes


def _same_numbers(checkpoint: Checkpoint, one: TensorInfo, other: TensorInfo) -> bool:
    for first in range(0, one.shape[0], 512):
        rows = slice(first, min(first + 512, one.shape[0]))
        if not np.array_equal(checkpoint.read(one.name, rows).dequantize(), checkpoint.read(other.name, rows).dequantize()):
            return False
        checkpoint.release(one.name)
        checkpoint.release(other.name)
    return True


def _is_weight(info: TensorInfo, wish: Wish) -> bool:
    """Whether it is one of the matrices that a target quantizes."""
    if len(info.shape) != 2 or not info.name.endswith(".weight") or info.spec is None or any(fnmatchcase(info.name, p) for p in wish.keep):
        return False
    return any(fnmatchcase(info.name, p) for p in wish.include) or not any(fnmatchcase(info.name, p) for p in KEPT)


def _is_odd(info: TensorInfo) -> bool:
    """A plain tensor of a type whose numbers are not ours to interpret: integers, booleans, bare small floats, float64."""
    return not info.parts and info.stored in ("I8", "U8", "F8_E4M3", "F8_E5M2", "F64")


def _wanted(checkpoint: Checkpoint, infos: Sequence[TensorInfo], chosen: set[str], wish: Wish) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """(weight -> the precision in which it comes to the writer, weight -> that of its inputs)."""
    weights = [info for info in infos if info.name in chosen and info.spec is not None]
    if wish.quantization is None:
        return ({info.name: info.spec for info in weights if info.spec is not None},
                {info.name: info.activation for info in weights if info.activation is not None})
    if any(info.spec is not None and info.spec.quantized for info in weights) and not wish.requantize:
        raise UsageError("the weights are quantized already", where="--quantization", remedy="leave it out to convert them exactly, or add --requantize")
    plan = Plan.parse(plan_text(wish.quantization))
    specs, activations = {}, {}
    for info in weights:
        scheme = plan.scheme_for(info.name)
        if scheme is None:
            continue
        specs[info.name] = scheme.weight
        if scheme.activation.quantized:
            if not scheme.activation.dynamic:
                raise UsageError("static scales of activations come from calibration", where="--quantization", remedy="name a scheme with dynamic ones")
            if scheme.activation.rotated:
                raise UsageError("no format written here says that inputs are rotated when the model runs", where="--quantization",
                                 remedy="leave the h out (W8A8); `octavo quantize --to octavo` keeps it")
            activations[info.name] = scheme.activation
    return specs, activations


def _cache(checkpoint: Checkpoint, wish: Wish) -> tuple[TensorSpec | None, bool]:
    """(the precision of the key-value cache, whether --quantization names it); else it is what the source says. Raises UsageError."""
    scheme = Plan.parse(plan_text(wish.quantization)).default if wish.quantization is not None else None
    if scheme is None or not (scheme.cache.quantized or scheme.cache_values.quantized):
        return checkpoint.cache, False
    if scheme.values is not None:
        raise UsageError("keys and values of different precision are said by Octavo's own format alone", where="--quantization",
                         remedy="`octavo quantize --to octavo` writes it; or name one for both, such as C8")
    if not scheme.cache.dynamic:
        raise UsageError("static scales of the key-value cache come from calibration", where="--quantization",
                         remedy="`octavo quantize --scheme ... --data FILE` measures them; or name computed ones, such as C8")
    return scheme.cache, True


def _input_scales(checkpoint: Checkpoint, wish: Wish) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = getattr(checkpoint, "input_scales", dict)() if wish.quantization is None else {}
    return found


def _agreed(info: TensorInfo, item: Item, specs: Mapping[str, TensorSpec], wish: Wish) -> bool:
    """Unquantized numbers come to be rounded; but a precision that was named is that one or none."""
    return info.spec is not None and not info.spec.quantized and (wish.quantization is None or item.spec == specs.get(info.name))


def _weight(checkpoint: Checkpoint, info: TensorInfo, spec: TensorSpec, writer: Writer, inexact: str) -> Item:
    """A tensor for the target's own writer. `spec` is the stored one, or the one that --quantization names."""
    assert info.spec is not None
    shape = info.shape
    reason = writer.why_not(info.name, spec, shape)
    by_numbers = reason is None and spec == info.spec
    if by_numbers:
        reason = inexact or _tried(checkpoint, info, writer)
    rounded = ""
    if reason is not None:
        rounded = reason if info.spec.quantized or spec != info.spec or isinstance(writer, PlainWriter) else f"quantized from {info.stored}"
        # Two-level scales that do not fit are rounded by themselves; see _pieces.
        spec = spec if by_numbers and formats.get(spec.format).two_level else writer.nearest(info.name, spec, shape)
    elif spec != info.spec:
        rounded = f"quantized from {info.stored}"
        return Item(info, spec, writer, writer.parts(info.name, spec, shape), "" if not spec.quantized else rounded, spec.quantized)
    quantized = not isinstance(writer, PlainWriter) and (spec.quantized or reason is not None)
    return Item(info, spec, writer, writer.parts(info.name, spec, shape), rounded, quantized)


def _tried(checkpoint: Checkpoint, info: TensorInfo, writer: Writer) -> str | None:
    """Why the first rows do not fit, where their numbers and not their spec say so."""
    assert info.spec is not None
    if not info.spec.quantized:
        return None
    piece = first_piece(checkpoint, info)
    parts = writer.parts(info.name, info.spec, piece.shape)
    arrays = {name: np.zeros(held(part)[1], held(part)[0]) for name, part in parts.items()}
    try:
        writer.fill(info.name, piece, 0, arrays)
    except InexactError as error:
        return error.what
    finally:
        checkpoint.release(info.name)
    return None


def _plain(info: TensorInfo, plain: PlainWriter) -> Item:
    assert info.spec is not None
    reason = plain.why_not(info.name, info.spec, info.shape)
    target = plain.nearest(info.name, info.spec, info.shape)
    return Item(info, target, plain, plain.parts(info.name, info.spec, info.shape), reason or "")


def _moved(checkpoint: Checkpoint, info: TensorInfo, writer: Writer) -> Item:
    if isinstance(writer, FileWriter) or not hasattr(checkpoint, "as_stored"):
        raise CheckpointError(f"tensor {info.name!r} of type {info.stored} has no place in the target", where=str(info.file),
                              remedy="it is no weight: take a copy of the model without it")
    return Item(info, None, None, {info.name: Part(info.stored, info.shape)})


def _refusal(checkpoint: Checkpoint, wish: Wish, refused: Mapping[str, str]) -> RefusedError:
    reasons: dict[str, list[str]] = {}
    for name, reason in refused.items():
        reasons.setdefault(reason, []).append(name)
    told = []
    for reason, names in list(reasons.items())[:REFUSALS_SHOWN]:
        told.append(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {reason}")
    more = f"; and {len(reasons) - REFUSALS_SHOWN} more reasons" if len(reasons) > REFUSALS_SHOWN else ""
    return RefusedError(f"{wish.to} cannot hold {len(refused)} weight{'s' if len(refused) > 1 else ''} exactly ({'; '.join(told)}{more})",
                        where=str(checkpoint.path), remedy="add --requantize to round them to the nearest that it holds")
