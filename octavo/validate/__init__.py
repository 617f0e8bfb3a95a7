"""`octavo validate`: the checklist before production, measured: latency, rate, accuracy, load, cost, memory, settings, alerts; each line pass, fail or not
measured, with its evidence.

    limits -> run (accuracy, load with ratios, documented, alerts -> lines) -> Report -> page, badge -> files
"""

from .badge import badge, markdown
from .files import write
from .limits import Limits, read_limits
from .lines import Line, Report
from .page import html
from .run import Wanted, validate

__all__ = ["Limits", "Line", "Report", "Wanted", "badge", "html", "markdown", "read_limits", "validate", "write"]
