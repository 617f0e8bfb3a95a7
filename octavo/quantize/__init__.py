"""quantize: a model into fewer bits, calibrated, block by block, as a checkpoint that other engines read.

A method is a rounder (float weight -> QTensor) after any number of transforms (weights -> weights of the same function that round better).
"""

from __future__ import annotations

from .method import Rounder, Transform, rounder, transform
from .run import Report, Wish, plan_text, quantize

__all__ = ["Report", "Rounder", "Transform", "Wish", "plan_text", "quantize", "rounder", "transform"]
