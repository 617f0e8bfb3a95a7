"""Finds tool calls in the text that a model writes, as it comes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .scanner import CallScanner

if TYPE_CHECKING:
    from .syntax import Syntax

LONGEST_NAME = 128


@dataclass(frozen=True)
class Content:
    """Text that belongs to the answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of call `index`."""

    index: int
    text: str


Event = Content | CallStart | CallArguments


class Reader:
    """`push` and `finish` give the events. What looks like a call but names no function of `names` stays text."""

    def __init__(self, syntax: Syntax, names: frozenset[str]) -> None:
        self.syntax, self.names = syntax, names
        self.calls = 0
        self._held = ""                           # not decided yet
        self._region = ""                         # what was read since the call's opening, in case it turns out to be text
        self._fresh = syntax.bare                 # a call may begin without a marker: at the start and after another call
        self._inside = False                      # between an opening and its call's brace
        self._after = False                       # behind a call, where separators and closings vanish
        self._scanner: CallScanner | None = None
        self._announced = False

    def push(self, text: str) -> list[Event]:
        self._held += text
        return _merged(self._read(final=False))

    def finish(self) -> list[Event]:
        """At the end of the answer: what is undecided is text."""
        events = list(self._read(final=True))
        left = "" if self._announced else self._region
        self._region, self._held, self._scanner = "", "", None
        if left.strip() or (left and not self.calls):
            events.append(Content(left))
        return _merged(iter(events))

    def _read(self, *, final: bool) -> Iterator[Event]:
        while self._held:
            before = (len(self._held), self._inside, self._after, self._fresh)
            if self._scanner is not None:
                yield from self._scan(self._scanner)
            elif self._inside:
                yield from self._open(final)
            else:
                yield from self._look(final)
            if (len(self._held), self._inside, self._after, self._fresh) == before:
                return

    def _look(self, final: bool) -> Iterator[Event]:
        """Outside calls: pass text on up to the next opening."""
        if self._after and self._skip_separators(final):
            return
        if self._fresh:
            text = self._held.lstrip()
            if not text and not final:
                return
            if text.startswith(("{", "[{")) or (text == "[" and not final):
                if text != "[":
                    self._inside = True
                return
        places = [(at, marker) for marker in self.syntax.openings if (at := self._held.find(marker)) >= 0]
        if places:
            at, marker = min(places)
            before = self._held[:at].rstrip()
            self._region, self._held = self._held[len(before) : at] + marker, self._held[at + len(marker) :]
            self._inside = True
            if before:
                yield Content(before)
            return
        hold = 0 if final else max((n for m in self.syntax.openings for n in range(1, len(m)) if self._held.endswith(m[:n])), default=0)
        # White space before a possible call is held back too: it belongs to the call if one comes.
        text = self._held[: len(self._held) - hold]
        if not final:
            text = text.rstrip()
        if text:
            self._held = self._held[len(text) :]
            self._fresh = self._after = False
            yield Content(text)
        elif final and self._held:
            text, self._held = self._held, ""
            if not self.calls:
                yield Content(text)

    def _skip_separators(self, final: bool) -> bool:
        """Drop what stands between calls; True when it may go on."""
        text = self._held.lstrip(self.syntax.separators + " \t\r\n")
        for closing in self.syntax.closings:
            if text.startswith(closing):
                self._held = text[len(closing) :]
                return True
            if text and closing.startswith(text):
                self._held = "" if final else text
                return True
        self._held = text
        return not text

    def _open(self, final: bool) -> Iterator[Event]:
        """Between an opening and the brace of the call."""
        brace = self._held.find("{")
        ahead = (self._held if brace < 0 else self._held[:brace]).strip(" \t\r\n[,")
        name: str | None = None
        if ahead and self.syntax.name_first:
            name = ahead.removesuffix("[ARGS]").strip()
            plausible = len(name) <= LONGEST_NAME and (brace < 0 or name in self.names)
        else:
            plausible = not ahead
        if not plausible or (brace < 0 and final):
            text, self._region, self._held = self._region + self._held, "", ""
            self._inside = self._fresh = self._after = False
            yield Content(text)
        elif brace >= 0:
            self._region += self._held[:brace]
            self._held = self._held[brace:]
            self._scanner, self._announced, self._inside = CallScanner(name), False, False

    def _scan(self, scanner: CallScanner) -> Iterator[Event]:
        taken = scanner.push(self._held)
        self._region += self._held[:taken]
        self._held = self._held[taken:]
        if scanner.name is not None and scanner.name in self.names and not self._announced:
            self._announced = True
            yield CallStart(self.calls, new_call_id(self.syntax), scanner.name)
        if self._announced and (piece := scanner.arguments()):
            yield CallArguments(self.calls, piece)
        if scanner.done:
            rest = scanner.rest() if self._announced else None
            if self._announced:
                if rest or rest is None:
                    yield CallArguments(self.calls, rest or "{}")
                self.calls += 1
                self._after = True
                self._fresh = self.syntax.bare
            else:
                yield Content(self._region)
                self._fresh = self._after = False
            self._region, self._scanner, self._announced = "", None, False


def new_call_id(syntax: Syntax) -> str:
    """Unlike any other; Mistral's templates refuse ids that are not nine letters and digits."""
    return secrets.token_hex(5)[:9] if syntax.short_ids else f"call_{secrets.token_hex(12)}"


def _merged(events: Iterator[Event]) -> list[Event]:
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, Content) and isinstance(last, Content):
            merged[-1] = Content(last.text + event.text)
        else:
            merged.append(event)
    return merged
