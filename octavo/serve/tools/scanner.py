"""Reads one call, {"name": ..., "arguments": {...}}, character by character, so that its arguments can be passed on while they are written."""

from __future__ import annotations

import json

ARGUMENTS = ("arguments", "parameters")


class CallScanner:
    """Feed it text from the opening brace on. It follows strings and nesting only; the object is parsed once it is complete."""

    def __init__(self, name: str | None = None) -> None:
        self.raw = ""
        self.name = name                # known beforehand where the syntax puts it outside the object
        self.done = False
        self._bare = name is not None   # the whole object is the arguments
        self._depth = 0
        self._string_start = -1         # index of the opening quote, -1 outside strings
        self._escaped = False
        self._key: str | None = None    # of the outermost object; None while a key is expected
        self._first = 0 if self._bare else -1   # where the arguments object begins
        self._last = -1                         # and ends (exclusive)
        self._given = 0

    def push(self, text: str) -> int:
        """Take in `text` up to the end of the object; how many characters were taken."""
        for count, char in enumerate(text):
            if self.done:
                return count
            self._take(char)
        return len(text)

    def _take(self, char: str) -> None:
        at = len(self.raw)
        self.raw += char
        if self._string_start >= 0:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._end_string(self.raw[self._string_start :])
                self._string_start = -1
        elif char == '"':
            self._string_start = at
        elif char in "{[":
            if char == "{" and self._depth == 1 and self._key in ARGUMENTS and self._first < 0:
                self._first = at
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._first >= 0 and self._last < 0 and self._depth == (0 if self._bare else 1):
                self._last = at + 1
            self.done = self._depth <= 0
        elif char == "," and self._depth == 1:
            self._key = None

    def _end_string(self, literal: str) -> None:
        if self._depth != 1 or self._bare:
            return
        try:
            value = json.loads(literal, strict=False)
        except ValueError:
            return
        if self._key is None:
            self._key = value
        elif self._key == "name" and self.name is None:
            self.name = value

    def arguments(self) -> str:
        """The characters of the arguments object that are new since the last call."""
        if self._first < 0:
            return ""
        end = self._last if self._last >= 0 else len(self.raw)
        piece = self.raw[self._first + self._given : end]
        self._given += len(piece)
        return piece

    def rest(self) -> str | None:
        """When done: the arguments that `arguments` could not give (written as a string, or missing). None: the object is no call."""
        if self._first >= 0:
            return ""
        try:
            value = json.loads(self.raw, strict=False)
        except (ValueError, RecursionError):
            return None
        given = next((value[key] for key in ARGUMENTS if key in value), None) if isinstance(value, dict) else None
        if given is None:
            return "{}"
        return given if isinstance(given, str) else json.dumps(given)
