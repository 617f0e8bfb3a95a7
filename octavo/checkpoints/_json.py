"""JSON from files that nobody vouches for: bounded in size and depth, duplicate keys refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

LARGEST_FILE = 64 << 20
DEEPEST = 64
# A string is skipped in one step (an unterminated one to the end), so that the scan is linear whatever the input.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|$|\\)', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_object(data: bytes, where: str, deepest: int = DEEPEST) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError with one line for anything else."""
    depth = 0
    for mark in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        depth += 1 if mark in b"[{" else -1
        if depth > deepest:
            raise CheckpointError(f"JSON is nested deeper than {deepest} levels", where=where)
    try:
        parsed = json.loads(data, object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise CheckpointError(f"JSON names {shown(error.args[0])} twice", where=where) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not JSON: {str(error)[:120]}", where=where) from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"JSON holds {type(parsed).__name__}, not an object", where=where)
    return parsed


def read_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    """The JSON object in a file; {} when the file is missing and not required."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"is larger than {LARGEST_FILE >> 20} MiB, which no file of this kind is", where=str(path))
        data = path.read_bytes()
    except FileNotFoundError:
        if required:
            raise CheckpointError("is missing", where=str(path), remedy="fetch the model again, or point to its folder") from None
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return parse_object(data, str(path))


def shown(name: object) -> str:
    """A name out of a file as it may be printed: quoted, control characters escaped, cut at 100 characters."""
    text = str(name)
    return ascii(text if len(text) <= 100 else text[:97] + "...")


class _DuplicateKeyError(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return found
