"""The walk from a float module to a quantized one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ..calibration.observers import Observer
from ..calibration.statistics import Statistics
from ..errors import OctavoError, SchemeError, UsageError
from ..qtensor import QTensor
from ..qtensor import quantize as nearest
from ..schemes import Plan, Scheme, TensorSpec, parse
from ._calibrate import mean_errors, ranges, statistics
from ._find import Found, find, open_fast_paths, put
from ._inputs import Inputs, is_static
from ._kind import WHOLE, Round, Wanted, vector
from ._weight import Quantized
from .from_ids import fuse
from .layers.linear import linear_values

KEPT_AS = "_octavo_report"  # under which a module keeps its Report


class Rounder(Protocol):
    """How weights are rounded; the rounders of `octavo quantize` are such. needs: "nothing", "squares" or "gram" (calibration.Statistics)."""

    @property
    def needs(self) -> Any: ...

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor: ...


class _Nearest:
    needs = "nothing"

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        return nearest(weight, spec)


@dataclass
class _Rounding:
    """`rounder` where it knows what it needs, else `without_data`, with a note."""

    rounder: Rounder
    without_data: Rounder
    notes: list[str] = field(default_factory=list)

    def of(self, found: Found) -> Round:
        """How the matrices of this layer are rounded."""
        def round_matrix(weight: np.ndarray, spec: TensorSpec, known: Statistics | None) -> QTensor:
            if self.rounder.needs == "nothing" or known is not None:
                tensor = self.rounder.round(weight, spec, known)
                self._take_remarks(found.name)
                return tensor
            why = "its rows are looked up one by one" if found.kind.name == "embedding" else "the data never reached it"
            note = f"{found.name or 'the module'} is rounded without calibration: {why}"
            if note not in self.notes:
                self.notes.append(note)
            return self.without_data.round(weight, spec, None)

        return round_matrix

    def _take_remarks(self, name: str) -> None:
        """What a rounder had to do otherwise than asked."""
        remarks: list[str] = getattr(self.rounder, "remarks", [])
        self.notes += [f"{name}: {remark}" for remark in remarks]
        remarks.clear()


@dataclass(frozen=True)
class Report:
    """layers: {name: scheme} of those that are quantized; kept: {name: why} of layers of a known kind that are not; encoders: how many run as one
    native program; before, after: bytes of parameters and buffers; notes: where it went otherwise than asked."""

    layers: dict[str, str]
    kept: dict[str, str]
    encoders: int
    before: int
    after: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers quantized, {len(self.kept)} kept; {self.before / 1e6:.1f} MB > {self.after / 1e6:.1f} MB"]
        if self.encoders:
            lines.append(f"{self.encoders} encoder{'s' if self.encoders > 1 else ''} as one native program")
        return "\n".join(lines + [f"  {name} kept: {why}" for name, why in self.kept.items()] + [f"  note: {note}" for note in self.notes])


def quantize(module: nn.Module, scheme: str | Scheme | Plan, data: Iterable[Any] | None = None, rounder: Rounder | None = None, *,
             without_data: Rounder | None = None, observer: str = "mse", smoothing: float = 0.7, bias_correction: bool = False,
             in_place: bool = False) -> nn.Module:
    """A copy of `module` (or itself, in_place) whose linears, convolutions, embeddings and recurrent layers hold few bits and run on the native kernels.

    scheme    a name of the grammar, alone or with overrides by layer ("W8A8; *.classifier.weight=keep"), or a Plan. A8: inputs get a scale per row while
              they run; A8ts: one scale that `data` gives, A8tsz: with a zero point; A16: float inputs.
    data      what the module takes, batch by batch: tensors, tuples of arguments or mappings. Needed for static scales, bias correction and
              calibrated methods; it must not be text or pictures the result is judged on
    rounder   how weights are rounded; to nearest by default
    without_data   the same for matrices of which `rounder` would need to know inputs that are not there (tables, layers that the data does not reach);
              the report notes them
    observer  of static scales: "mse", "min-max", "percentile" or "entropy" (calibration/observers.py)
    smoothing  with static scales, linears share the spread of their inputs between activations and weights, channel by channel (SmoothQuant's alpha); 0: not
    bias_correction  puts the mean error of the rounding, on `data`, into the biases

    The result is for inference, on the CPU; `report` says what became of each layer. Raises SchemeError for schemes that modules do not run in, UsageError
    for missing data or a module in which there is nothing to quantize.
    """
    plan = scheme if isinstance(scheme, Plan) else Plan(scheme) if isinstance(scheme, Scheme) else Plan.parse(scheme)
    rounder = rounder or _Nearest()
    result = module if in_place else copy.deepcopy(module)
    result.eval()
    before = nbytes(result)
    found, kept = find(result, plan)
    if not found:
        reasons = "; ".join(f"{name or 'the module'}: {why}" for name, why in list(kept.items())[:3])
        raise UsageError("there is nothing to quantize" + (f" ({reasons})" if reasons else ""), where=type(module).__name__,
                         remedy="modules need linear, convolution, embedding or recurrent layers that the plan does not keep")
    still = [f for f in found if is_static(f.scheme.activation) and f.kind.name != "embedding"]
    needs = str(rounder.needs) if rounder.needs != "nothing" else "moments" if still and smoothing else "nothing"
    if data is None and (still or bias_correction or needs != "nothing"):
        what = "static activations need" if still else "bias correction needs" if bias_correction else "this method needs"
        raise UsageError(f"{what} data to be calibrated on", where="quantize", remedy="give data=..., batches that the module takes")
    batches = list(data) if data is not None and (still or bias_correction or needs != "nothing") else []
    known = statistics(result, found, batches, needs) if needs != "nothing" else {}
    linears = {f.name: known[f.name][WHOLE] for f in still if f.kind.name == "linear" and f.name in known}
    factors = _factors([f for f in still if f.name in linears], linears, smoothing) if smoothing else {}
    seen = ranges(result, still, batches, observer, factors) if still else {}
    made: dict[str, Quantized] = {}
    rounding = _Rounding(rounder, without_data or _Nearest())
    for f in found:
        try:
            mine = known.get(f.name, {}) if rounder.needs != "nothing" else {}
            wanted = Wanted(f.name, f.scheme, _inputs(f, seen), rounding.of(f), mine, factors.get(f.name), f.kind.name == "linear")
            made[f.name] = f.kind.build(f.module, wanted)
        except OctavoError as problem:
            problem.args = (f"{f.name}: {problem}",)
            raise
    if bias_correction:
        _correct(result, found, batches, made)
    for name, layer in made.items():
        result = put(result, name, layer)
    open_fast_paths(result)
    report = Report({f.name: str(f.scheme) for f in found}, kept, fuse(result), before, nbytes(result), rounding.notes)
    result.__dict__[KEPT_AS] = report
    return result


def report(module: nn.Module) -> Report:
    """What `quantize` or `load` did. Raises UsageError for other modules."""
    known = module.__dict__.get(KEPT_AS)
    if not isinstance(known, Report):
        raise UsageError("this module was not quantized by Octavo", where=type(module).__name__)
    return known


def _correct(module: nn.Module, found: list[Found], batches: list[Any], made: dict[str, Quantized]) -> None:
    with_bias = [f for f in found if f.kind.name in ("linear", "convolution")]
    for name, error in mean_errors(module, with_bias, batches, made).items():
        layer: Any = made[name]
        layer.bias = vector(error if layer.bias is None else layer.bias + error.to(layer.bias.dtype))


def _factors(linears: list[Found], known: Mapping[str, Statistics], alpha: float) -> dict[str, np.ndarray]:
    """`smooth` by name. Linears that met the same numbers (query, key and value) get the same factors: their inputs become int8 once."""
    alike: dict[bytes, list[Found]] = {}
    for f in linears:
        seen = known[f.name]
        alike.setdefault(b"".join(np.ascontiguousarray(part).tobytes() for part in (seen.low, seen.high, seen.mean)), []).append(f)
    return {f.name: shared.copy() for group in alike.values() for shared in [smooth([f.module for f in group], known[group[0].name], alpha)] for f in group}


def smooth(modules: list[nn.Module], known: Statistics, alpha: float) -> np.ndarray:
    """Factors [k] for the inputs of linears whose products with them need one scale only: largest |x|^-alpha |w|^(1 - alpha) of each channel. Source: Xiao
    et al., arXiv:2211.10438, equation 4. Loud channels are softened by it and quiet ones not raised (the median is 1, and the most): a channel that
    calibration hardly heard would else be clipped when it speaks up (MiniLM's cosine fell from 0.994 to 0.990)."""
    values = np.max([linear_values(m).detach().float().abs().amax(dim=0).numpy() for m in modules], axis=0).astype(np.float64)
    inputs = known.largest.astype(np.float64)
    used = (inputs > 0) & (values > 0)
    factors = np.ones(len(inputs))
    factors[used] = inputs[used] ** -alpha * values[used] ** (1 - alpha)
    factors[used] /= np.median(factors[used]) if used.any() else 1
    return np.minimum(factors, 1).astype(np.float32)


def _inputs(found: Found, ranges: Mapping[str, Observer]) -> Inputs:
    spec: TensorSpec = found.scheme.activation
    if found.kind.name == "embedding":
        return Inputs()
    seen = ranges.get(found.name)
    if seen is not None and not seen.seen:
        return Inputs.of(parse("A8").activation, where=found.name)  # the data never reached this layer: a scale per row is always right
    if spec.quantized and not found.scheme.weight.format.startswith("int") and found.scheme.weight.format not in ("nf4", "fp4"):
        raise SchemeError(f"int8 inputs meet integer or 4-bit table weights, not {found.scheme.weight.format}", where=found.name, remedy="A16")
    return Inputs.of(spec, None if seen is None else seen.fixed(spec.symmetric), found.name)


def nbytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()) if isinstance(t, torch.Tensor))
