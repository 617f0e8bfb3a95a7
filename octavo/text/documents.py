"""Documents: the texts that a .jsonl file holds, one a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UsageError

CHATS = ("messages", "conversations", "conversation")
FIELDS = ("text", "content", "ctx", "prompt", "question")


def documents(path: Path) -> list[str]:
    """A text for each line that is not empty: a JSON string, a chat (its turns with an empty line between them), or the first of FIELDS that is a string.

    Raises UsageError for a line that holds none; OSError and UnicodeDecodeError where the file cannot be read.
    """
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also cut at separators that JSON strings may hold as they are
    return [_document(line, number, path) for number, line in enumerate(lines, 1) if line.strip()]


def _document(line: str, number: int, path: Path) -> str:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number} is not JSON: {error}", where=str(path)) from None
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for key in CHATS:
            if isinstance(turns := record.get(key), list):
                return "\n\n".join(str(turn.get("content", turn.get("value", ""))) for turn in turns if isinstance(turn, dict))
        for field in FIELDS:
            if isinstance(text := record.get(field), str):
                return text
    raise UsageError(f"line {number} holds no text", where=str(path),
                     remedy=f'a line is "text", or an object with one of {", ".join(FIELDS)}, or with "messages"')
