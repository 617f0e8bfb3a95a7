"""Policy search: which kernels, threads, chunks and batches are fastest for a model on this machine, found out by measuring."""

from __future__ import annotations

from .options import TuneOptions
from .report import Progress, table
from .tuner import Tuned, tune

__all__ = ["Progress", "TuneOptions", "Tuned", "table", "tune"]
