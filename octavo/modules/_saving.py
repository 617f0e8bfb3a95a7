"""A quantized module as one safetensors file: its state_dict, and in the header what each quantized layer is. No code is stored, and none is run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import layouts
from ..errors import CheckpointError, MissingExtraError, UsageError
from ..schemes import parse
from ._find import kinds, open_fast_paths, put
from ._inputs import Inputs
from ._quantize import KEPT_AS, Report, nbytes
from ._weight import Quantized, Weight
from .from_ids import fuse

FILE = "module.safetensors"
KEY = "octavo.modules"
VERSION = 1


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise MissingExtraError("saving modules needs safetensors", where="octavo", remedy="pip install 'octavo[torch]'") from None
    return safetensors


def save(module: nn.Module, path: str | Path) -> Path:
    """Writes `module.safetensors` into the folder `path` (or the file itself where the name ends so); returns the file. Raises UsageError for a module
    that was not quantized."""
    layers = {}
    for name, part in module.named_modules():
        if isinstance(part, Quantized):
            weights = {n: {"meta": w.meta.to_json(), "inputs": asdict(w.inputs), "order": w.order is not None, "factors": w.factors is not None}
                       for n, w in part.weights().items()}
            layers[name] = {"kind": part.kind, "scheme": part.scheme, "weights": weights}
    if not layers:
        raise UsageError("this module holds no quantized layers", where=type(module).__name__, remedy="octavo.quantize it first")
    file = Path(path)
    file = file if file.suffix == ".safetensors" else file / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[int, str] = {}
    same: dict[str, str] = {}  # tensors that stand in two places are stored once
    for name, tensor in module.state_dict().items():
        key = tensor.data_ptr() if tensor.numel() else id(tensor)
        if key in shared and tensors[shared[key]].shape == tensor.shape:
            same[name] = shared[key]
        else:
            shared[key] = name
            tensors[name] = tensor.contiguous()
    header = json.dumps({"version": VERSION, "layers": layers, "same": same}, separators=(",", ":"))
    _safetensors().torch.save_file(tensors, file, {"format": "pt", KEY: header})
    return file


def load(path: str | Path, module: nn.Module) -> nn.Module:
    """The module saved at `path`, in the place of the float layers of `module`: one of the same architecture, whose numbers do not matter (they may be on the
    meta device). `module` itself is changed and returned. Raises CheckpointError for a file that is damaged or belongs to another architecture."""
    file = Path(path)
    file = file / FILE if file.is_dir() else file
    where = str(file)
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(KEY, "null"))
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(file)
    except FileNotFoundError:
        raise CheckpointError("there is no such file", where=where, remedy="give the folder or file that octavo.save_module wrote") from None
    except (safetensors.SafetensorError, ValueError) as problem:
        raise CheckpointError(f"cannot be read: {problem}", where=where, remedy="fetch or save it again") from None
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise CheckpointError("was not written by octavo.save_module, or by another version", where=where, remedy="quantize the module again")
    before = nbytes(module)
    module.eval()
    try:
        for name, layer in header["layers"].items():
            module = put(module, name, _layer(module, name, layer, tensors, where))
        tensors |= {name: tensors[one] for name, one in header["same"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise CheckpointError(f"its description does not fit this module: {type(problem).__name__} {problem}", where=where,
                              remedy="load it into a module of the architecture it was saved from") from None
    _fill(module, tensors, where)
    open_fast_paths(module)
    module.__dict__[KEPT_AS] = Report({n: str(v["scheme"]) for n, v in header["layers"].items()}, {}, fuse(module), before, nbytes(module))
    return module


def _layer(root: nn.Module, name: str, stored: dict[str, Any], tensors: dict[str, torch.Tensor], where: str) -> Quantized:
    old = root.get_submodule(name)
    kind = kinds()[stored["kind"]]
    if not kind.replaces(old):
        raise CheckpointError(f"{name} is a {stored['kind']} there, and a {type(old).__name__} in this module", where=where,
                              remedy="load it into a module of the architecture it was saved from")
    prefix = f"{name}." if name else ""
    weights = {}
    for part, said in stored["weights"].items():
        meta = layouts.PackedMeta.from_json(said["meta"])
        panels = tensors[f"{prefix}{part}.panels"]
        if meta != layouts.describe(meta.spec, meta.n, meta.k) or panels.dtype != torch.uint8 or tuple(panels.shape) != (meta.nbytes,):
            raise CheckpointError(f"{prefix}{part} does not have the {meta.nbytes} bytes that its shape needs", where=where, remedy="fetch or save it again")
        blob = layouts.aligned(meta.nbytes)
        blob[:] = panels.numpy()
        order = tensors[f"{prefix}{part}.order"].numpy() if said["order"] else None
        factors = tensors[f"{prefix}{part}.factors"].numpy() if said["factors"] else None
        if order is not None and (order.min() < 0 or order.max() >= meta.k or len(order) != meta.k):
            raise CheckpointError(f"{prefix}{part} takes inputs that are not there", where=where, remedy="fetch or save it again")
        weights[part] = Weight(layouts.Packed(blob, meta, order, factors), Inputs(**said["inputs"]))
    held = frozenset(n[len(prefix) :] for n in tensors if n.startswith(prefix))
    return kind.blank(old, parse(stored["scheme"]), weights, held)


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Every tensor of the file in its place, none left over and none missing."""
    mine = module.state_dict()
    missing, extra = sorted(set(mine) - set(tensors)), sorted(set(tensors) - set(mine))
    odd = [n for n in mine if n in tensors and mine[n].shape != tensors[n].shape]
    if missing or extra or odd:
        named = missing or extra or odd
        raise CheckpointError(f"{len(missing)} tensors are missing, {len(extra)} have no place and {len(odd)} have another shape, {named[0]} first",
                              where=where, remedy="load it into a module of the architecture it was saved from")
    module.load_state_dict(tensors, assign=any(t.is_meta for t in mine.values()))


__all__ = ["load", "save"]
