"""The GPU kernels in Triton's interpreter. Without Triton none of these tests is collected: it comes with octavo[gpu], which no CPU needs."""

from __future__ import annotations

import importlib.util
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, here and in what tests import

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]
