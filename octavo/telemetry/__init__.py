"""What is counted: the table of all metrics, and the values that the engine writes and the server exposes."""

from .definitions import DEFINITIONS, PREFIX, Definition
from .values import Counter, EngineTelemetry, Gauge, Histogram, Value

__all__ = ["Counter", "DEFINITIONS", "Definition", "EngineTelemetry", "Gauge", "Histogram", "PREFIX", "Value"]
