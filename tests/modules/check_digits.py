"""The CNN example on scikit-learn's digits, trained as it stands: 8 bits lose under half a point. `make test-harness`."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cnn_digits.py"


def test_the_example_loses_under_half_a_point() -> None:
    found = runpy.run_path(str(EXAMPLE))["main"]()
    assert found["float"] > 0.95
    for scheme in ("W8A8", "W8A8tsz"):
        assert found["float"] - found[scheme] < 0.005
