"""The extra octavo[quantize]: scipy and threadpoolctl, which serving does without."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import MissingExtraError


def check_extra() -> None:
    """Raises MissingExtraError where what calibrated quantization is computed with is not installed."""
    for name in ("scipy", "threadpoolctl"):
        try:
            import_module(name)
        except ImportError:
            raise MissingExtraError(f"needs {name}, which is not installed", where="octavo quantize", remedy="pip install 'octavo[quantize]'") from None


def one_blas_thread() -> Any:
    """A context in which BLAS has one thread: pieces are the parallel work, and a BLAS of several would add in another order. Raises MissingExtraError."""
    check_extra()
    import_module("scipy.linalg")  # it has a BLAS of its own, which is only bounded if it is there by now
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
