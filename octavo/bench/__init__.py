"""`octavo bench`: a server under load, and several precisions of a model side by side. The load itself is octavo.traffic."""

from .compare import Pair, compare
from .page import html
from .sides import Wanted, measure_sides
from .sweep import saturation, sweep
from .table import csv_text, rows

__all__ = ["Pair", "Wanted", "compare", "csv_text", "html", "measure_sides", "rows", "saturation", "sweep"]
