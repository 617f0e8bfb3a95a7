"""Candidates: the precisions that the search may give to a weight, and what they take on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ... import formats
from ...checkpoints import Checkpoint
from ...errors import UsageError
from ...models import Decoder
from ...schemes import Scheme, TensorSpec, parse

DEFAULT = ("W2g64", "W3g64", "W3g32", "W4g64", "W4g32", "W5g64", "W6g64", "W8g64")
OUTER = ("model.embed_tokens.weight", "lm_head.weight")
LEAST_OUTER_BITS = 4  # with fewer, the output layer alone loses more than all others together
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

    def specs(self) -> dict[str, tuple[TensorSpec, ...]]:
        """What sensitivities are measured for."""
        return {name: tuple(scheme.weight for scheme in schemes) for name, schemes in self.wanted.items()}


def candidates(checkpoint: Checkpoint, model: Decoder, found: Mapping[str, str], names: Sequence[str], *, keep: Sequence[str] = (),
               outer: bool = True) -> Candidates:
    """The candidates `names` for every linear of the layers and, with `outer`, for embedding and output layer.

    A group that does not divide a weight's inputs is no candidate for it; where none does, scales are per row.
    Raises UsageError where a weight has none left, or is quantized already.
    """
    schemes = sorted((parse(name) for name in names), key=lambda scheme: scheme.weight.bits_per_weight())
    if not schemes:
        raise UsageError("no candidates", where="--candidates", remedy=f"such as {','.join(DEFAULT)}")
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
        fitting = tuple(s for s in schemes if s.weight.granularity != "group" or k % s.weight.size == 0)
        if not any(s.weight.quantized for s in fitting):
            fitting = (*_by_row(schemes), *fitting)
        if name in OUTER:
            fitting = tuple(s for s in fitting if s.weight.bits >= LEAST_OUTER_BITS)
        if not fitting:
            raise UsageError(f"no candidate fits {name} [{n}, {k}]", where="--candidates",
                             remedy="embedding and output layer take 4 bits or more: name such a candidate, or --keep them")
        wanted[name], shapes[name], bytes_of[name] = fitting, (n, k), info.nbytes
    if not wanted:
        raise UsageError("nothing would be quantized", where="--keep", remedy="keep fewer weights")
    return Candidates(tuple(schemes), wanted, shapes, bytes_of, fixed)


def _by_row(schemes: Sequence[Scheme]) -> tuple[Scheme, ...]:
    """The same bits with one scale per row, each once."""
    whole = [scheme for scheme in schemes if formats.get(scheme.weight.format).kind == "int"]
    return tuple(dict.fromkeys(replace(s, weight=TensorSpec(s.weight.format, "channel", symmetric=s.weight.symmetric)) for s in whole))


def units(names: Sequence[str], together: bool) -> list[tuple[str, ...]]:
    """Weights that get one precision: each by itself, or those that engines fuse into one matrix."""
    if not together:
        return [(name,) for name in names]
    found: dict[str, list[str]] = {}
    for name in names:
        key = next((name.replace(part, "+".join(fused)) for fused in FUSED for part in fused if f".{part}." in name), name)
        found.setdefault(key, []).append(name)
    return [tuple(unit) for unit in found.values()]
