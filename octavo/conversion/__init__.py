"""convert: a checkpoint of any format that is read into any that is written, exactly where the target can hold the same numbers."""

from __future__ import annotations

from ._convert import convert
from ._plan import RefusedError
from ._report import Report, Row

__all__ = ["RefusedError", "Report", "Row", "convert"]
