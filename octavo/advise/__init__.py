"""`octavo advise`: what this machine can do, and which precision to serve a model in, from short measurements of it."""

from .breakeven import BreakEven, break_even, break_evens
from .candidate import Candidate, Load, Outcome, Step, as_json, front, outcome
from .decide import GOALS, Decision, Goal, Limits, decide, effective
from .hardware import DEVICES, MATRIX, Device, rows_of
from .measure import CANDIDATES, SWEPT, Wanted, measure
from .page import html
from .predict import on_device

__all__ = ["CANDIDATES", "DEVICES", "GOALS", "MATRIX", "SWEPT", "BreakEven", "Candidate", "Decision", "Device", "Goal", "Limits", "Load", "Outcome",
           "Step", "Wanted", "as_json", "break_even", "break_evens", "decide", "effective", "front", "html", "measure", "on_device", "outcome", "rows_of"]
