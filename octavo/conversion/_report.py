"""What a conversion did, or would do."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import Checkpoint
from ..checkpoints.writing import nbytes
from ._plan import Conversion, Item


@dataclass(frozen=True)
class Row:
    """Tensors of one fate: `stored` as what they come, `written` as what they go, `rounded` why their numbers change ("": they do not)."""

    stored: str
    written: str
    rounded: str
    tensors: int
    numbers: int
    bytes_before: int
    bytes_after: int

    @property
    def exact(self) -> bool:
        return not self.rounded

    @property
    def bits(self) -> float:
        """Bits per number as written, scales included."""
        return 8 * self.bytes_after / max(1, self.numbers)


@dataclass
class Report:
    """source, out, target  as they were given
    rows      see Row
    files     names of the files written, small ones included
    resumed   tensors that an earlier run had finished already
    seconds   0 for a dry run
    """

    source: str
    out: str
    target: str
    rows: list[Row]
    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0
    dry: bool = False

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        return sum(row.bytes_after for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Of everything that is written."""
        return 8 * self.bytes_after / max(1, sum(row.numbers for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        rows = [{"stored": r.stored, "written": r.written, "exact": r.exact, "reason": r.rounded, "tensors": r.tensors, "numbers": r.numbers,
                 "bytes_before": r.bytes_before, "bytes_after": r.bytes_after, "bits_per_weight": round(r.bits, 4)} for r in self.rows]
        return {"source": self.source, "out": self.out, "target": self.target, "dry_run": self.dry, "tensors": rows, "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after, "bits_per_weight": round(self.bits_per_weight, 4), "files": self.files, "notes": self.notes,
                "resumed_tensors": self.resumed, "seconds": round(self.seconds, 3)}


def rows_of(plan: Conversion) -> list[Row]:
    """The plan's tensors by fate, quantized weights first."""
    groups: dict[tuple[bool, str, str, str], list[Item]] = {}
    for item in plan.items:
        groups.setdefault((not item.quantized, item.info.stored, written_as(item), item.rounded), []).append(item)
    return [Row(stored, written, rounded, len(items), sum(math.prod(i.info.shape) for i in items), sum(i.info.nbytes for i in items),
                sum(map(nbytes, {name: part for i in items for name, part in i.parts.items()}.values())))
            for (_, stored, written, rounded), items in sorted(groups.items(), key=lambda pair: pair[0][0])]


def written_as(item: Item) -> str:
    """The precision of a quantized weight by its name in the grammar; of others, the type in the file."""
    from ..schemes import write_tensor

    if item.quantized and item.spec is not None and item.spec.quantized:
        return "W" + write_tensor(item.spec, "weight")
    return " + ".join(Counter(part.dtype for part in item.parts.values()))


def manifest(checkpoint: Checkpoint, name: str, digests: dict[str, str], plan: Conversion, target: str, version: str, began: str) -> dict[str, Any]:
    """octavo-manifest.json: what the copy was made of (`name`: of the folder or file, or the hub id), and how."""
    rows = rows_of(plan)
    written = Counter({row.written: 0 for row in rows})
    for row in rows:
        written[row.written] += row.tensors
    exact = sum(row.tensors for row in rows if row.exact)
    return {
        "octavo": version, "target": target, "created": began,
        "source": {"name": name, "format": checkpoint.codec, "sha256": digests},
        "scheme": dict(written),
        "calibration": {"text_sha256": None, "seed": None},
        "tensors": {"exact": exact, "rounded": sum(row.tensors for row in rows) - exact},
        "changed": [{"stored": row.stored, "written": row.written, "tensors": row.tensors, "reason": row.rounded} for row in rows if not row.exact],
    }


def file_names(folder: Path) -> list[str]:
    """Every file below, relative to the folder, sorted."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


