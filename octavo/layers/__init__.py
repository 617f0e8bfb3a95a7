"""The parts that language models share. A layer names its tensors (as Hugging Face's files do) in the same lines that use them, and calls
nothing but the op contract (kernels/op.py)."""

from __future__ import annotations

from .attention import Attention
from .embedding import embed, head
from .linear import linear, linears
from .mlp import GatedMLP
from .norm import RMSNorm
from .rope import Rope
from .tensors import Declared, Table, Tensors, Wanted, declare

__all__ = ["Attention", "Declared", "GatedMLP", "RMSNorm", "Rope", "Table", "Tensors", "Wanted", "declare", "embed", "head", "linear", "linears"]
