"""The command line: finds the verbs, reads the options, turns errors into one line and an exit status."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any

from .. import __version__
from ..errors import OctavoError, UsageError
from ._command import Command
from ._plain import read

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


def verbs() -> dict[str, str]:
    """Name of each verb -> its module, from the file names alone: nothing is imported."""
    package = importlib.import_module(__package__ or "octavo.cli")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name.replace("_", "-"): f"{package.__name__}.{name}" for name in names}


def build(commands: Sequence[Command]) -> Any:
    """The cyclopts App of these commands."""
    from cyclopts import App, Parameter

    app = App(
        name="octavo",
        help="Serve language models in fewer bits, on the hardware at hand.",
        version=__version__,
        default_parameter=Parameter(negative_iterable=()),
    )
    for command in commands:
        app.command(_action(command, Parameter(name="*")), name=command.name, help=command.help)
    return app


def _action(command: Command, flat: Any) -> Any:
    def action(options: Any) -> int | None:
        return command.run(options)

    def bare(options: Any = None) -> int | None:
        return command.run(command.options() if options is None else options)

    optional = all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(command.options) if f.init)
    chosen, kind = (bare, command.options | None) if optional else (action, command.options)  # cyclopts wants a default where all of it has one
    chosen.__annotations__ = {"options": Annotated[kind, flat]}
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status. A verb that is named is the only one imported.

    Without `argv`, as a script, it ends the process itself once what is to be done at exit has been done: taking a hundred modules and a mapped
    model apart, piece by piece, lasts longer than many an answer, and the system frees all of it at once.
    """
    status = _run(argv)
    if argv is None:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a reader that has gone, a stream that is closed
                stream.flush()
        os._exit(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    tokens = list(sys.argv[1:] if argv is None else argv)
    known = verbs()
    wanted = [known[tokens[0]]] if tokens and tokens[0] in known else list(known.values())
    try:
        commands = [importlib.import_module(module).COMMAND for module in wanted]
        plain = read(commands[0].options, tokens[1:]) if len(commands) == 1 and tokens else None
        status = commands[0].run(plain) if plain is not None else _by_cyclopts(commands, tokens)
        sys.stdout.flush()
    except OctavoError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`octavo list | head`); what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status if isinstance(status, int) else 0


def _by_cyclopts(commands: Sequence[Command], tokens: Sequence[str]) -> Any:
    """Help, lists, mistakes: everything that `_plain` leaves alone."""
    from cyclopts import CycloptsError

    try:
        return build(commands)(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise UsageError(str(error)) from None


def _fail(message: str, status: int) -> int:
    print(f"octavo: {' '.join(message.split())}", file=sys.stderr)
    return status
