"""Reading a plain command line without cyclopts, whose import alone costs more than mapping a model.

A line is plain when every token is `--name value`, `--name=value`, `--flag`, `--no-flag` or a positional value, each known, once, and of a
simple type. Whatever else there is (help, a list, a mistake, a value that begins with a dash) is not for this file: `read` returns None and
cyclopts, which is the truth, reads the line. So nothing here words an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

_TYPES: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "str": (re.compile(r".+", re.DOTALL), str),
    "Path": (re.compile(r".+", re.DOTALL), Path),
    "int": (re.compile(r"[0-9]{1,18}"), int),
    "float": (re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?"), float),
}


def read(options: type, tokens: Sequence[str]) -> Any | None:
    """The Options of a plain command line (without the verb), or None."""
    own = [field for field in fields(options) if field.init]
    named = {f"--{field.name.replace('_', '-')}": field for field in own}
    flags = {f"--{'' if on else 'no-'}{field.name.replace('_', '-')}": (field, on) for field in own if _type(field) == "bool" for on in (True, False)}
    places = [field for field in own if not field.kw_only]
    values: dict[str, Any] = {}
    loose: list[str] = []
    rest = iter(tokens)
    for token in rest:
        if not token.startswith("-"):
            loose.append(token)
            continue
        if token in flags:
            field, on = flags[token]
            value: Any = on
        else:
            name, equals, text = token.partition("=")
            found = named.get(name)
            if found is None or (not equals and (text := next(rest, "-")).startswith("-")):
                return None
            field, value = found, _value(found, text)
        if value is None or field.name in values:
            return None
        values[field.name] = value
    open_places = [field for field in places if field.name not in values]
    if len(loose) > len(open_places) or (loose and len(open_places) < len(places)):
        return None  # what a position means once an earlier one was named is for cyclopts to say
    for field, text in zip(open_places, loose, strict=False):
        value = _value(field, text)
        if value is None:
            return None
        values[field.name] = value
    if any(field.name not in values and field.default is MISSING and field.default_factory is MISSING for field in own):
        return None
    return options(**values)


def _type(field: Field[Any]) -> str:
    """`int` of `int | None`, whether the annotation is a string or the type itself; the annotation as it is where it is anything else."""
    text = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", None) if isinstance(field.type, type) else str(field.type)
    return str(text).removesuffix(" | None").rpartition(".")[2]


def _value(field: Field[Any], text: str) -> Any | None:
    known = _TYPES.get(_type(field))
    if known is None or not known[0].fullmatch(text):
        return None
    return known[1](text)

