"""Calibration: token sequences, statistics of what flows into each linear, and a model run block by block over all of them at once."""

from __future__ import annotations

from .blocks import Block, Blocks
from .group import Group, Source
from .rows import Matrix, Node, RowsOps
from .samples import Samples, read_samples
from .statistics import Statistics

__all__ = ["Block", "Blocks", "Group", "Matrix", "Node", "RowsOps", "Samples", "Source", "Statistics", "read_samples"]
