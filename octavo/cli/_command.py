"""Command: what a file of `octavo/cli` ends with, `COMMAND = Command("name", Options, run)`.

`Options` is a dataclass and is the command line: a field is an option, a string literal under a field its help. Fields before `_: KW_ONLY`
may be given by position, those after it only by name. Booleans say what is on (`cache: bool = True` gives `--cache` and `--no-cache`).
The verb's module is imported whenever help is shown, so whatever is heavy is imported inside `run`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A verb: its name, its Options dataclass, and `run(options)`, which returns the exit status (None: 0)."""

    name: str
    options: type
    run: Callable[[Any], int | None]

    @property
    def help(self) -> str:
        """The docstring of `run`, or else of its module."""
        return inspect.getdoc(self.run) or inspect.getdoc(sys.modules[self.run.__module__]) or ""
