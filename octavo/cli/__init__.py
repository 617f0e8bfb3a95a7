"""The command line. One file per verb, each ending with a COMMAND; `main` finds them."""

from __future__ import annotations

from ._app import main
from ._command import Command

__all__ = ["Command", "main"]
