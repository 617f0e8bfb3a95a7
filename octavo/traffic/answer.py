"""Server-sent events of an answer -> what a Sample wants to know: when text came, how many tokens it was, what went wrong."""

from __future__ import annotations

import json
from typing import Any

from .response import Response
from .sample import Sample

LONGEST_DETAIL = 300


class Answer:
    """Fills `sample` from the body of one streamed answer of OpenAI's API, chat or completions."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.response = Response()
        self._rest = b""
        self._done = False
        self._refusal = bytearray()

    def feed(self, data: bytes, now: float) -> None:
        """Bytes that came at `now`. Raises response.Malformed."""
        body = self.response.feed(data)
        if body:
            if self.response.status != 200:
                self._refusal += body[: 4096 - len(self._refusal)]
            else:
                self._events(body, now)
        if self.response.ended:
            self._end(now)

    def closed(self, now: float) -> None:
        """The connection closed before the response was whole, or as its end."""
        if self.response.closed():
            self._end(now)
        else:
            self.fail("cut off" if self.response.status else "no answer", "the server closed the connection")

    def fail(self, kind: str, detail: str) -> None:
        if not self.sample.error:
            self.sample.error, self.sample.detail = kind, " ".join(detail.split())[:LONGEST_DETAIL]

    def _events(self, body: bytes, now: float) -> None:
        lines = (self._rest + body).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now)

    def _event(self, data: bytes, now: float) -> None:
        sample = self.sample
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event: Any = json.loads(data)
            if (error := event.get("error")) is not None:
                self.fail(f"error event {error.get('code') or ''}".strip(), str(error.get("message", "")))
                return
            usage, choices = event.get("usage"), event.get("choices")
            if usage:
                sample.tokens, sample.prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
                sample.cached_tokens = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            if choices and _has_text(choices[0]):
                if sample.chunks:
                    sample.gaps.append(now - sample.last)
                else:
                    sample.first = now
                sample.chunks += 1
                sample.last = now
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            self.fail("bad event", data[:LONGEST_DETAIL].decode(errors="replace"))

    def _end(self, now: float) -> None:
        sample, status = self.sample, self.response.status
        sample.end = now
        if status != 200:
            self.fail(f"http {status}", _said(bytes(self._refusal)))
        elif not self._done:
            self.fail("cut off", "the stream ended without [DONE]")
        elif not sample.chunks:
            # An answer may be one end token, or tokens that make no text: that is an answer, whose only time is its end.
            sample.first = sample.last = now
        sample.tokens = sample.tokens or sample.chunks


def _has_text(choice: dict[str, Any]) -> bool:
    """A piece of the answer, whatever kind: text, thoughts, a call of a tool."""
    if choice.get("text"):
        return True
    delta = choice.get("delta") or {}
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"))


def _said(body: bytes) -> str:
    """The message of a refusal."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        return body.decode(errors="replace")
