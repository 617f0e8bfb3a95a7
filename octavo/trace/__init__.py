"""Where the time of a step goes: marks of the native program as spans, sums by op, a table, and Chrome's trace format."""

from __future__ import annotations

from ..spans import Span, spans
from .chrome import chrome_trace
from .summary import OpRow, StepParts, Summary, summarize
from .table import show

__all__ = ["OpRow", "Span", "StepParts", "Summary", "chrome_trace", "show", "spans", "summarize"]
