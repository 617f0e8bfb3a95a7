"""KL by layer: what the model would lose if only this one layer of it were quantized.

Divergence is a property of the output, so a layer has none of its own. What is measured is a substitution: the original runs with all tensors of one
layer (weights, their activation format, norms, biases) taken from the model, everything else its own, and the KL of its output is that layer's.
The sum over layers is near the whole model's KL where losses are small, and tells which layers deserve more bits. Transforms that stay inside a
layer (AWQ, SmoothQuant, scales between norm and linear) are covered; where a rotation runs through the whole model, no layer of it fits into the
original, and the numbers are of no use: `kl_by_part` then says so.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import UsageError
from .comparison import compare
from .intervals import Estimate
from .perplexity import Windows
from .recording import record

if TYPE_CHECKING:
    from ..loading import LoadedModel

_LAYER = re.compile(r"\blayers\.(\d+)\.")
NONSENSE = 3.0  # nats: no single quantized layer that belongs into the original does this; about what a wrong one does


@dataclass(frozen=True)
class PartLoss:
    """`part`: "layer 7", or the name of a tensor outside the layers; by kind: "down_proj"."""

    part: str
    kl: Estimate

    def to_json(self) -> dict[str, Any]:
        return {"part": self.part, "kl": self.kl.to_json()}


def kl_by_part(original: LoadedModel, model: LoadedModel, windows: Windows, *, by: Literal["layer", "kind"] = "layer",
               on_part: Callable[[int, int], None] | None = None) -> list[PartLoss]:
    """The loss of each layer (or of each kind of weight, in all layers), and of what lies outside of them, on `windows`. Takes a forward of every window for
    each of them.

    Raises UsageError where the two are no copies of one another, or share no layer (see above).
    """
    theirs, ours = model.bound, original.bound
    if theirs.weights.keys() != ours.weights.keys() or theirs.vectors.keys() != ours.vectors.keys() or original.backend.name != model.backend.name:
        raise UsageError("the two models do not have the same tensors", where="KL by layer")
    groups: dict[str, set[str]] = {}
    for name in [*ours.weights, *ours.vectors]:
        match = _LAYER.search(name)
        inside = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2] if by == "kind" else f"layer {match[1]}" if match else ""
        groups.setdefault(inside if match else name, set()).add(name)
    found = []
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        recording = record(original, windows, Path(folder) / "logits.npy")
        for done, (part, names) in enumerate(groups.items(), 1):
            found.append(PartLoss(part, compare(recording, original.with_tensors_of(model, names), windows).kl))
            if on_part is not None:
                on_part(done, len(groups))
    layers = [loss.kl.value for loss in found if loss.part.startswith("layer ")]
    if layers and float(np.median(layers)) > NONSENSE:
        raise UsageError("a layer of the model does not fit into the original: a transform runs through the whole model", where="KL by layer",
                         remedy="compare with the model as it was before rounding")
    return found
