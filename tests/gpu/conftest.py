"""The GPU's kernels in Triton's interpreter. Where triton is not installed, nothing here is collected."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") is not None else ["test_*.py"]
