"""The GPU's kernels in Triton's interpreter, on the systems that triton is made for; elsewhere nothing here is collected."""

from __future__ import annotations

import platform
import sys
from typing import Any

MADE_FOR = sys.platform == "linux" and platform.machine() == "x86_64"
collect_ignore_glob = [] if MADE_FOR else ["*.py"]


def _hasten() -> None:
    """Calls between kernels' functions without preparing triton.language anew each time, which takes milliseconds: the kernel that is running has done so. Only
    triton's own functions (max, sum ...) look it up elsewhere, and what is prepared for them once stays."""
    from triton.runtime import interpreter

    prepared: set[str] = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module.startswith("triton.") and module not in prepared:
            prepared.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


if MADE_FOR:
    _hasten()
