"""A worker's side of crew.py: a case a line in, an answer a line out."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import Any


def serve() -> None:
    """Answers cases until the input ends. What libraries print goes to the error output; a GPU in an unknown state ends the process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from .machine import prepare

    prepare()
    for line in sys.stdin:
        found = answer(json.loads(line))
        answers.write(json.dumps(found) + "\n")
        answers.flush()
        if found.get("broken"):
            os._exit(3)
    os._exit(0)  # engines and their threads are left as they are


def answer(case: dict[str, Any]) -> dict[str, Any]:
    """What `measure(case)` of the case's module gives, or {"error": ...}."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # graphs of the case before
    try:
        found: dict[str, Any] = importlib.import_module(f"gpu_parts.{case['module']}").measure(case)
        return found
    except Exception as error:  # whatever a kernel, a driver or a peer raises is a result
        where = traceback.extract_tb(error.__traceback__)[-1]
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({os.path.basename(where.filename)}:{where.lineno})"}
        return found | ({"broken": True} if _spoiled() else {})


def _spoiled() -> bool:
    """Whether the GPU's context no longer answers."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False
