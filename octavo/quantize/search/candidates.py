"""Candidates: the precisions that the search may give to a weight, and what they take on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ... import formats
from ...checkpoints import Checkpoint
from ...errors import UsageError
from ...models import Decoder
from ...schemes import Scheme, TensorSpec, parse
from ..inputs import is_static, with_static_inputs
from .goal import Goal

DEFAULT = ("W2g64", "W3g64", "W3g32", "W4g64", "W4g32", "W5g64", "W6g64", "W8g64")
OUTER = ("model.embed_tokens.weight", "lm_head.weight")
LEAST_OUTER_BITS = 4  # with fewer, the output layer alone loses more than all others together
USUAL_OUTER = ("W4g64", "W5g64", "W6g64", "W8g64")  # for embedding and output layer, where no candidate that is named has so many
UNQUANTIZED_BITS = 16
BF16 = TensorSpec("bf16")
FUSED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))


@dataclass(frozen=True)
class Candidates:
    """schemes     as they were named, fewest bits first
    wanted         weight -> its possible schemes
    shapes         weight -> [out, in]
    stored         weight -> its bytes as it comes
    fixed          bytes of everything else in the checkpoint, as stored
    """

    schemes: tuple[Scheme, ...]
    wanted: Mapping[str, tuple[Scheme, ...]]
    shapes: Mapping[str, tuple[int, int]]
    stored: Mapping[str, int]
    fixed: int

    def bytes_of(self, name: str, scheme: Scheme) -> int:
        """On disk, scales and zero points included; an unquantized scheme keeps the weight as it is stored."""
        return scheme.weight.packed_bytes(self.shapes[name]) if scheme.weight.quantized else self.stored[name]

    @property
    def numbers(self) -> int:
        """Weights that take part."""
        return sum(n * k for n, k in (self.shapes[name] for name in self.wanted))

    def work_of(self, name: str, scheme: Scheme) -> int:
        """Bit operations of a token: bits of the weight as stored times bits of its inputs (HAWQ-V3, arXiv 2011.10680). Inputs of a weight that is not
        quantized are not rounded either. The embedding counts like the others."""
        inputs = scheme.activation.bits if scheme.weight.quantized and scheme.activation.quantized else UNQUANTIZED_BITS
        return 8 * self.bytes_of(name, scheme) * inputs

    def check(self, goal: Goal) -> None:
        """Raises UsageError where the goal is smaller than the smallest that there is: before anything is measured."""
        least = sum(min(self.bytes_of(name, scheme) for scheme in schemes) for name, schemes in self.wanted.items())
        more = "name --candidates with fewer bits, or leave out with --keep what needs more (such as '*embed_tokens*')"
        if goal.size is not None and goal.size < least + self.fixed:
            raise UsageError(f"{goal.size / 1e6:.4g} MB for all tensors", where="--target-size",
                             remedy=f"with these candidates it takes at least {(least + self.fixed) / 1e6:.4g} MB; {more}")
        if goal.bits is not None and int(goal.bits * self.numbers / 8) < least:
            raise UsageError(f"{goal.bits:g} bits per weight", where="--target-bits",
                             remedy=f"with these candidates it takes at least {8 * least / self.numbers + 5e-4:.3f}; {more}")


def candidates(checkpoint: Checkpoint, model: Decoder, found: Mapping[str, str], names: Sequence[str], *, keep: Sequence[str] = (),
               outer: bool = True) -> Candidates:
    """The candidates `names` for every linear of the layers and, with `outer`, for embedding and output layer.

    A group that does not divide a weight's inputs is no candidate for it; where none does, scales are per row. Embedding and output layer take those of
    LEAST_OUTER_BITS and more; where none is named, USUAL_OUTER. Raises UsageError where a weight has none left, or is quantized already.
    """
    schemes = _sorted(with_static_inputs(parse(name), f"--candidates {name}") for name in names)
    if not schemes:
        raise UsageError("no candidates", where="--candidates", remedy=f"such as {','.join(DEFAULT)}")
    enough = [s for s in schemes if s.weight.bits >= LEAST_OUTER_BITS and formats.get(s.weight.format).kind != "trellis"]  # they are rounded to nearest
    for_outer = _sorted(replace(s, activation=BF16) if is_static(s.activation) else s for s in enough or map(parse, USUAL_OUTER))
    wanted: dict[str, tuple[Scheme, ...]] = {}
    shapes: dict[str, tuple[int, int]] = {}
    bytes_of: dict[str, int] = {}
    fixed = 0
    for name, stored in found.items():
        info = checkpoint.tensors[stored]
        part = len(info.shape) == 2 and (name.startswith("model.layers.") or (outer and name in OUTER))
        if not part or any(fnmatchcase(name, pattern) for pattern in keep):
            fixed += info.nbytes
            continue
        if info.spec is not None and info.spec.quantized:
            raise UsageError(f"{stored} is quantized already ({info.stored})", where=str(checkpoint.path), remedy="search on the original model")
        n, k = info.shape
        possible = for_outer if name in OUTER else schemes
        fitting = tuple(s for s in possible if s.weight.granularity != "group" or k % s.weight.size == 0)
        if not any(s.weight.quantized for s in fitting):
            fitting = (*_by_row(possible), *fitting)
        if not fitting:
            raise UsageError(f"no candidate fits {name} [{n}, {k}]", where="--candidates", remedy=f"name a group that divides {k}, or --keep it")
        wanted[name], shapes[name], bytes_of[name] = fitting, (n, k), info.nbytes
    if not wanted:
        raise UsageError("nothing would be quantized", where="--keep", remedy="keep fewer weights")
    return Candidates(tuple(schemes), wanted, shapes, bytes_of, fixed)


def _sorted(schemes: Iterable[Scheme]) -> list[Scheme]:
    """Each once, fewest bits first."""
    return sorted(dict.fromkeys(schemes), key=lambda scheme: (scheme.weight.bits_per_weight(), scheme.activation.bits))


def _by_row(schemes: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """The same bits with one scale per row, each once."""
    whole = [scheme for scheme in schemes if formats.get(scheme.weight.format).kind == "int"]
    return tuple(dict.fromkeys(replace(s, weight=TensorSpec(s.weight.format, "channel", symmetric=s.weight.symmetric)) for s in whole))


def units(names: Iterable[str], together: bool) -> list[tuple[str, ...]]:
    """Weights that get one precision: each by itself, or those that engines fuse into one matrix."""
    if not together:
        return [(name,) for name in names]
    found: dict[str, list[str]] = {}
    for name in names:
        key = next((name.replace(part, "+".join(fused)) for fused in FUSED for part in fused if f".{part}." in name), name)
        found.setdefault(key, []).append(name)
    return [tuple(unit) for unit in found.values()]
