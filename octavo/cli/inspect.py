"""`octavo inspect MODEL`: what is in a checkpoint, and what each precision would need."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ._command import Command
from ._printing import columns, printable, size

if TYPE_CHECKING:
    from ..checkpoints import Checkpoint, TensorInfo
    from ..machine import Machine
    from ..schemes import Plan

PRESETS = ("16bit", "8bit", "4bit")
_LAYER = re.compile(r"^(.*?\blayers\.|.*?\bblk\.|.*?\bh\.)(\d+)\.")


@dataclass
class Options:
    model: str
    """A model folder, a .gguf file, or a hub id (owner/name)."""

    _: KW_ONLY

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt), by torch's weights_only loader, where there are no others."""

    scheme: list[str] = field(default_factory=list)
    """A further precision to price, such as W4g64A8 (may be repeated)."""

    tensors: bool = False
    """List every tensor, not only the layers."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """What is in a checkpoint: maker, scheme, true bits per weight, layers, sizes, which engines load it, and what each precision would need."""
    from ..checkpoints import open_checkpoint
    from ..machine import detect

    found = inspect(open_checkpoint(options.model, revision=options.revision, allow_pickle=options.allow_pickle), [*PRESETS, *options.scheme], detect())
    print(json.dumps(found, indent=2) if options.json else _text(found, options.tensors))


def inspect(checkpoint: Checkpoint, schemes: Sequence[str], machine: Machine) -> dict[str, Any]:
    """Everything about a checkpoint as JSON-able data. Reads no tensor data."""
    from ..inspect import facts_of, verdicts

    infos = list(checkpoint.tensors.values())
    facts = facts_of(checkpoint)
    stored = Counter(info.stored for info in infos)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.codec,
        "model_type": checkpoint.config.get("model_type"),
        "parameters": sum(math.prod(info.shape) for info in infos),
        "bytes": sum(info.nbytes for info in infos),
        **facts.to_json(),
        "receipt": _receipt(checkpoint),
        "loads_in": [verdict.to_json() for verdict in verdicts(checkpoint, facts)],
        "stored": {kind: {"tensors": count, "bytes": sum(i.nbytes for i in infos if i.stored == kind)} for kind, count in stored.most_common()},
        "tensors": [{"name": i.name, "shape": list(i.shape), "stored": i.stored, "bits_per_number": round(8 * i.nbytes / max(1, math.prod(i.shape)), 4),
                     "bytes": i.nbytes, "file": i.file.name} for i in infos],
        "schemes": [price(checkpoint, name, machine) for name in schemes],
    }


def _receipt(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The receipt that lies beside the checkpoint, and `of_these_files`: whether it is of these files."""
    from ..errors import OctavoError
    from ..quality.receipt import beside, is_of, read_receipt

    places = [beside(checkpoint.path), *(sorted(checkpoint.path.glob("octavo-receipt-*.json")) if checkpoint.path.is_dir() else ())]
    receipt = next((found for place in places if (found := read_receipt(place)) is not None), None)
    if receipt is None:
        return None
    try:
        same = is_of(receipt, checkpoint)
    except OctavoError:
        same = False
    return {"summary": receipt.line, "of_these_files": same, **receipt.to_json()}


def price(checkpoint: Checkpoint, name: str, machine: Machine) -> dict[str, Any]:
    """Bytes of the weights, and of one token in the cache, under a precision; None with the reason where the model is not served."""
    from .. import layouts, schemes

    plan = schemes.choose(name, machine).plan

    def weight_bytes(info: TensorInfo) -> int:
        scheme = plan.scheme_for(info.name)
        spec = scheme.weight if scheme else info.spec
        if len(info.shape) != 2 or spec is None:
            return 4 * math.prod(info.shape)  # vectors stay float32
        return layouts.describe(spec, *info.shape).nbytes if layouts.why_not(spec) is None else spec.packed_bytes(info.shape)

    cached, reason = _cache_bytes(checkpoint, plan)
    return {"name": name, "scheme": str(plan.default), "plan": str(plan), "weight_bytes": sum(map(weight_bytes, checkpoint.tensors.values())),
            "kv_bytes_per_token": cached, "why_not": reason}


def _cache_bytes(checkpoint: Checkpoint, plan: Plan) -> tuple[int | None, str]:
    from ..cache import PAGE, KVPool
    from ..errors import OctavoError
    from ..kernels.op import CACHE_FORMATS
    from ..models import read_model
    from ..schemes import TensorSpec, cache_pairs

    try:
        model = read_model(checkpoint.config)
    except OctavoError as error:
        return None, str(error)
    spec = plan.cache(len(model.kv_heads))
    if any(half.format not in CACHE_FORMATS for pair in cache_pairs(spec, len(model.kv_heads)) for half in pair):
        spec = TensorSpec("bf16")  # as loading takes it
    return KVPool.bytes_per_page(model.kv_heads, model.head_dims, spec) // PAGE, ""


def _text(found: dict[str, Any], all_tensors: bool) -> str:
    kinds = ", ".join(f"{kind} {size(part['bytes'])} in {part['tensors']}" for kind, part in found["stored"].items())
    head = [f"{found['path']}", f"  {printable(str(found['model_type']))}, {_count(found['parameters'])} parameters in "
            f"{len(found['tensors'])} tensors, {size(found['bytes'])} ({found['format']})", f"  stored as: {kinds or 'nothing'}", *_facts(found)]
    rows = [(t["name"], "x".join(map(str, t["shape"])), t["stored"], size(t["bytes"])) for t in found["tensors"]] if all_tensors else _layers(found)
    table = columns([("TENSOR" if all_tensors else "PART", "SHAPE" if all_tensors else "PARAMETERS", "STORED AS", "SIZE"), *rows])
    priced = [("PRECISION", "SCHEME", "WEIGHTS", "CACHE PER TOKEN")]
    for scheme in found["schemes"]:
        per_token = scheme["kv_bytes_per_token"]
        priced.append((scheme["name"], scheme["scheme"], size(scheme["weight_bytes"]), "-" if per_token is None else size(per_token)))
    reasons = sorted({scheme["why_not"] for scheme in found["schemes"] if scheme["why_not"]})
    elsewhere = [("LOADS IN", "", "BECAUSE"), *((f"{v['engine']} {v['version']}", v["answer"], v["why"]) for v in found["loads_in"])]
    return "\n".join([*head, "", *table, "", *columns(priced), *(f"  not served: {reason}" for reason in reasons), "", *columns(elsewhere)])


def _facts(found: dict[str, Any]) -> list[str]:
    """Who made it, its scheme or schemes, the KV cache, and what is to be known."""
    lines = [f"  made by: {printable(found['producer'])}"] if found["producer"] else []
    lines.append(f"  scheme: {found['scheme'] or 'none'}, {found['bits_per_weight']:.4g} bits per weight over all matrices")
    if len(found["classes"]) > 1:
        lines += [f"    {one['scheme']}: {one['tensors']} weight{'s' if one['tensors'] > 1 else ''}, {_count(one['parameters'])} parameters, "
                  f"{one['bits_per_weight']:.4g} bits each, such as {printable(one['example'])}" for one in found["classes"]]
    if scales := found["cache_scales"]:
        lines.append(f"  KV cache: {found['cache'] or 'not said'}, {scales['tensors']} stored scales from {scales['smallest']:.4g} to {scales['largest']:.4g}")
    elif found["cache"]:
        lines.append(f"  KV cache: {found['cache']}, no stored scales")
    if receipt := found["receipt"]:
        lines.append(f"  receipt: {printable(receipt['summary'])}" + ("" if receipt["of_these_files"] else " (of other files: these were changed since)"))
    return [*lines, *(f"  note: {printable(note)}" for note in found["notes"])]


def _layers(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row for a part of the model; neighbouring layers that hold the same are one row."""
    parts: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for tensor in found["tensors"]:
        match = _LAYER.match(tensor["name"])
        parts.setdefault((match[1] + "N", int(match[2])) if match else (tensor["name"], None), []).append(tensor)
    layers = sorted((key for key in parts if key[1] is not None), key=lambda key: (key[0], key[1] or 0))
    rows: list[tuple[str, ...]] = [(name, *_held(parts[name, number])) for name, number in parts if number is None]
    for (name, *held), same in groupby(layers, key=lambda key: (key[0], *_held(parts[key]))):
        numbers = [number for _, number in same]
        span = f"{name[:-1]}{numbers[0]}" + (f" to {numbers[-1]}, each" if len(numbers) > 1 else "")
        rows.append((span, *held))
    return rows


def _held(tensors: Iterable[dict[str, Any]]) -> tuple[str, str, str]:
    """(parameters, types, bytes) of a part."""
    tensors = list(tensors)
    kinds = Counter(t["stored"] for t in tensors)
    return (_count(sum(math.prod(t["shape"]) for t in tensors)), " ".join(f"{n}x{kind}" if n > 1 else kind for kind, n in kinds.most_common()),
            size(sum(t["bytes"] for t in tensors)))


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M" if number >= 1e5 else str(number)


COMMAND = Command("inspect", Options, run)
