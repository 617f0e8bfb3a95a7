"""rtn: round to nearest.

What it is: each value goes to the nearest code; scales are searched so that the squared error of each group, weighted by |w|, is least.
When to choose it: no calibration data, or no time; 8 bits, where the rest hardly gains.
Limits: at 4 bits and below the calibrated methods lose clearly less.
Source: the scale search is described in octavo/qtensor/_quantize.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...calibration import Statistics
from ...qtensor import QTensor, quantize
from ...schemes import TensorSpec
from ..method import Needs


@dataclass(frozen=True)
class Rtn:
    needs: ClassVar[Needs] = "nothing"

    def round(self, weight: np.ndarray, spec: TensorSpec, statistics: Statistics | None) -> QTensor:
        return quantize(weight, spec)


ROUNDER = Rtn
