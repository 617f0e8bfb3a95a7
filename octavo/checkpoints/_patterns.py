"""Regular expressions out of files, matched in bounded time.

Configs of quantized models name modules by regular expressions (GPTQModel's `dynamic`, AutoRound's `extra_config`, compressed-tensors' `re:` targets).
Python's `re` backtracks, and a hostile pattern keeps it busy for years. Here a pattern maps the set of places where it may begin to the set of places
where it may end, so the work is bounded by the lengths of pattern and name; `re`, which is faster, gets the patterns that cannot backtrack far. Known
are literals, `.`, classes, groups, alternatives, repeats, `^`, `$`, `\\b` and lookaheads; back references, lookbehinds and flags are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_PATTERN = 2000
LONGEST_NAME = 1000
DEEPEST = 8        # groups in groups
DEEPEST_REPEAT = 2  # repeats without an end in repeats without an end
MOST_REPEATS = 1000

Ends = Callable[[str, frozenset[int]], frozenset[int]]


class PatternError(ValueError):
    """The pattern is broken, too long, or uses what is not known here; the message says which."""


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern; made by `compiled`."""

    text: str
    _ends: Ends = field(repr=False)
    _python: re.Pattern[str] | None = field(repr=False, default=None)

    def begins(self, name: str) -> bool:
        """Whether a prefix of `name` matches (`re.match`)."""
        if self._python is not None:
            return self._python.match(_bounded(name)) is not None
        return bool(self._ends(_bounded(name), frozenset({0})))

    def within(self, name: str) -> bool:
        """Whether any part of `name` matches (`re.search`)."""
        if self._python is not None:
            return self._python.search(_bounded(name)) is not None
        return bool(self._ends(_bounded(name), frozenset(range(len(name) + 1))))

    def whole(self, name: str) -> bool:
        """Whether all of `name` matches (`re.fullmatch`)."""
        return len(name) in self._ends(_bounded(name), frozenset({0}))


def compiled(text: str) -> Pattern:
    """Raises PatternError."""
    if len(text) > LONGEST_PATTERN:
        raise PatternError(f"longer than {LONGEST_PATTERN} characters")
    parser = _Parser(text)
    ends, _ = parser.alternatives(0)
    if parser.at < len(text):
        raise PatternError(f"unexpected {text[parser.at]!r} at {parser.at}")
    tame = parser.repeats <= 2 and parser.choices <= 1 and parser.deepest_choice == 0
    return Pattern(text, ends, re.compile(text) if tame else None)


def _bounded(name: str) -> str:
    if len(name) > LONGEST_NAME:
        raise PatternError(f"the name is longer than {LONGEST_NAME} characters")
    return name


class _Parser:
    """Recursive descent; every method gives (ends, depth of unbounded repeats)."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.repeats = self.choices = self.deepest_choice = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, expected: str = "") -> str:
        character = self.peek()
        if not character or (expected and character != expected):
            raise PatternError(f"expected {expected or 'more'!r} at {self.at}")
        self.at += 1
        return character

    def alternatives(self, depth: int) -> tuple[Ends, int]:
        if depth > DEEPEST:
            raise PatternError(f"more than {DEEPEST} groups in one another")
        choices = [self.sequence(depth)]
        while self.peek() == "|":
            self.take()
            choices.append(self.sequence(depth))
        if len(choices) == 1:
            return choices[0]
        branches = [ends for ends, _ in choices]
        self.choices += 1
        return (lambda name, starts: frozenset().union(*(ends(name, starts) for ends in branches))), max(deep for _, deep in choices)

    def sequence(self, depth: int) -> tuple[Ends, int]:
        parts: list[Ends] = []
        deepest = 0
        while self.peek() not in ("", "|", ")"):
            ends, deep = self.repeat(depth)
            parts.append(ends)
            deepest = max(deepest, deep)

        def run(name: str, places: frozenset[int]) -> frozenset[int]:
            for part in parts:
                if not places:
                    break
                places = part(name, places)
            return places

        return run, deepest

    def repeat(self, depth: int) -> tuple[Ends, int]:
        began, choices = self.at, self.choices
        ends, deep = self.atom(depth)
        mark = self.peek()
        counted = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}").match(self.text, self.at) if mark == "{" else None
        if mark in ("*", "+", "?") and mark:
            self.take()
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        elif counted and (counted[1] or counted[3]):
            self.at = counted.end()
            least = int(counted[1] or 0)
            most = (int(counted[3]) if counted[3] else None) if counted[2] else least
            if max(least, most or 0) > MOST_REPEATS or (most is not None and most < least):
                raise PatternError(f"repeat of {counted[0]}")
        else:
            return ends, deep
        if self.text[began : began + 1] in "^$" or self.text[began : began + 2] == "\\b":
            raise PatternError(f"nothing to repeat at {began}")
        if self.peek() == "+":
            raise PatternError("possessive repeats are not known here")
        if self.peek() == "?":
            self.take()  # lazy: finds the same matches
        if self.peek() and self.peek() in "*+?":
            raise PatternError(f"repeat of a repeat at {self.at}")
        self.repeats += 1
        self.deepest_choice += self.choices - choices + (deep > 0)  # what a repeat would try again and again
        if most is None or most > 1:
            deep += 1
        if deep > DEEPEST_REPEAT:
            raise PatternError(f"more than {DEEPEST_REPEAT} repeats in one another")
        return _repeated(ends, least, most), deep

    def atom(self, depth: int) -> tuple[Ends, int]:
        character = self.take()
        if character == "(":
            return self.group(depth)
        if character == "[":
            return _one(self.one_of()), 0
        if character == ".":
            return _one(lambda c: c != "\n"), 0
        if character == "^":
            return (lambda name, starts: starts & {0}), 0
        if character == "$":
            return (lambda name, starts: starts & {len(name)}), 0
        if character == "\\":
            return self.escape(), 0
        if character in "*+?":
            raise PatternError(f"nothing to repeat at {self.at - 1}")
        return _one(lambda c: c == character), 0

    def group(self, depth: int) -> tuple[Ends, int]:
        ahead: bool | None = None
        if self.peek() == "?":
            self.take()
            kind = self.take()
            if kind in "=!":
                ahead = kind == "="
            elif kind == "P" and self.peek() == "<":
                self.at = self.text.find(">", self.at) + 1
                if not self.at:
                    raise PatternError("group name without an end")
            elif kind != ":":
                raise PatternError(f"(?{kind} is not known here")
        ends, deep = self.alternatives(depth + 1)
        self.take(")")
        if ahead is None:
            return ends, deep
        return (lambda name, starts: frozenset(s for s in starts if bool(ends(name, frozenset({s}))) == ahead)), deep + 1

    def escape(self) -> Ends:
        character = self.take()
        if character == "b":
            return lambda name, starts: frozenset(s for s in starts if _word(name[s - 1 : s] if s else "") != _word(name[s : s + 1]))
        if (known := _CLASSES.get(character)) is not None:
            return _one(known)
        literal = _LITERALS.get(character, character)
        if literal.isalnum():
            raise PatternError(f"\\{character} is not known here")
        return _one(lambda c: c == literal)

    def one_of(self) -> Callable[[str], bool]:
        negated = self.peek() == "^"
        if negated:
            self.take()
        tests: list[Callable[[str], bool]] = []
        while self.peek() != "]" or not tests:
            low = self.take()
            if low == "\\":
                low = self.take()
                if low in _CLASSES:
                    tests.append(_CLASSES[low])
                    continue
                low = _LITERALS.get(low, low)
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.take()
                high = self.take()
                high = self.take() if high == "\\" else high
                if high < low:
                    raise PatternError(f"range {low}-{high}")
                tests.append(lambda c, low=low, high=high: low <= c <= high)  # type: ignore[misc]
            else:
                tests.append(lambda c, low=low: c == low)  # type: ignore[misc]
        self.take("]")
        return lambda c: any(test(c) for test in tests) != negated


def _one(test: Callable[[str], bool]) -> Ends:
    """One character that passes the test."""
    return lambda name, starts: frozenset(s + 1 for s in starts if s < len(name) and test(name[s]))


def _repeated(ends: Ends, least: int, most: int | None) -> Ends:
    def run(name: str, places: frozenset[int]) -> frozenset[int]:
        for _ in range(least):
            further = ends(name, places)
            if not further or further == places:
                places = further
                break
            places = further
        found, fresh, turns = places, places, least
        while fresh and (most is None or turns < most):
            fresh = ends(name, fresh) - found
            found |= fresh
            turns += 1
        return found

    return run


def _word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal, "D": lambda c: not c.isdecimal(), "w": _word, "W": lambda c: not _word(c), "s": str.isspace, "S": lambda c: not c.isspace()}
_LITERALS = {"t": "\t", "n": "\n", "r": "\r"}
