"""The mixed search: which precision for which weight, at a size or a loss that is asked for.

sensitivity.py says what each weight at each precision costs in KL, program.py picks exactly, front.py draws all that can be had; kept.py holds what a
killed search has found.
"""

from __future__ import annotations

from .caches import CONTEXT, measure_caches, split
from .candidates import DEFAULT, OUTER, Candidates, candidates, units
from .goal import Goal, parse_size
from .kept import Kept
from .program import Item, Solution
from .search import Search, measure
from .sensitivity import Sensitivities, Sensitivity

__all__ = ["CONTEXT", "DEFAULT", "OUTER", "Candidates", "Goal", "Item", "Kept", "Search", "Sensitivities", "Sensitivity", "Solution", "candidates",
           "measure", "measure_caches", "parse_size", "split", "units"]
