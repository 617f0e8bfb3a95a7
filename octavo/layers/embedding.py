"""Both ends of a model: tokens become vectors, vectors become logits."""

from __future__ import annotations

from ..kernels.op import Value
from .tensors import Tensors


def embed(t: Tensors, name: str, vocab: int, hidden: int, factor: float = 1.0) -> Value:
    """[rows, hidden]: each token's row of the table, times `factor`."""
    return t.ops.embed(t.weight(f"{name}.weight", vocab, hidden, "embed"), factor)


def head(t: Tensors, x: Value, name: str, vocab: int, hidden: int, softcap: float = 0.0) -> Value:
    """Logits [logit_rows, vocab]. Tied heads name the embedding."""
    logits = t.ops.linear(x, [t.weight(f"{name}.weight", vocab, hidden)])[0]
    return t.ops.softcap(logits, softcap) if softcap else logits
