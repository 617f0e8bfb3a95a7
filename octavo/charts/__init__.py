"""Charts and pages that need nothing but a browser: inline SVG in one HTML file, no script, nothing from the network, dark and light.

    page("A report", [table(("what", "how much"), [("rows", "3")]), lines([Line("4bit", xs, ys)], title="Latency", x="share of requests", y="seconds")])
"""

from .page import escaped, heading, page, paragraph, table
from .svg import Line, bars, lines

__all__ = ["Line", "bars", "escaped", "heading", "lines", "page", "paragraph", "table"]
