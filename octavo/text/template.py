"""Chat templates: jinja2 in its sandbox, with the names that Hugging Face templates expect.

A template comes with the model, so it is treated as hostile: besides the sandbox (no attributes that lead out, no changes to what is
passed in, range up to 100,000) there are limits on loop turns and calls, on the characters it writes, on the size of any value that
`*`, `**`, `+`, `%`, `~`, string methods or filters make, and on time. They are enforced by rewriting the parsed template: every loop
turn, every output and every `~` passes a check.

What templates may use is documented in Hugging Face's chat template guide: https://huggingface.co/docs/transformers/chat_templating
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from ..errors import RequestError

MOST_TURNS = 1_000_000          # loop turns and calls
MOST_CHARACTERS = 16_000_000    # written in all, and in any one value
MOST_SECONDS = 5.0
LONGEST_TEMPLATE = 1_000_000    # characters
REASONING = ("reasoning_content", "thinking", "reasoning")   # names under which clients pass a message's reasoning


class ChatTemplate:
    """One template, compiled at its first use."""

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def _compiled(self) -> Any:
        from ._sandbox import compile_template

        if len(self.source) > LONGEST_TEMPLATE:
            raise RequestError(f"the model's chat template has {len(self.source)} characters, more than {LONGEST_TEMPLATE}", param="messages")
        return compile_template(self.source)

    def render(self, messages: Sequence[dict[str, Any]], *, tools: Sequence[dict[str, Any]] | None, documents: Sequence[dict[str, Any]] | None,
               add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        """The prompt. Raises RequestError when the template refuses the messages or passes a limit."""
        import jinja2

        try:
            return self._compiled(
                {
                    **plain(dict(variables)), "messages": [_with_reasoning(plain(m)) for m in messages],
                    "tools": plain(list(tools)) if tools is not None else None,
                    "documents": plain(list(documents)) if documents is not None else None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except jinja2.exceptions.TemplateSyntaxError as error:
            raise RequestError(f"the model's chat template does not parse: {error.message} (line {error.lineno})", param="messages") from None
        except jinja2.exceptions.TemplateError as error:
            raise RequestError(f"the model's chat template refuses the messages: {error.message or type(error).__name__}", param="messages") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError, RecursionError, MemoryError) as error:
            raise RequestError(f"the model's chat template fails on these messages: {type(error).__name__}: {error}", param="messages") from None


class Meter:
    """Counts what one rendering uses up."""

    def __init__(self) -> None:
        self.turns = self.written = 0
        self.end = time.monotonic() + MOST_SECONDS

    def turn(self) -> None:
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise limit(f"loops more than {MOST_TURNS} times")
        if not self.turns & 255 and time.monotonic() > self.end:
            raise limit(f"takes more than {MOST_SECONDS:.0f} seconds")

    def write(self, size: int) -> None:
        self.written += size
        if self.written > MOST_CHARACTERS:
            raise limit(f"writes more than {MOST_CHARACTERS} characters")


def limit(what: str) -> Exception:
    from jinja2.exceptions import SecurityError

    return SecurityError(f"it {what}")


def bounded(size: float) -> None:
    """Refuse a value of more than MOST_CHARACTERS characters or items before it is made."""
    if size > MOST_CHARACTERS:
        raise limit(f"makes a value of more than {MOST_CHARACTERS} characters")


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
           sort_keys: bool = False) -> str:
    """JSON as it is, without the HTML escapes of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(pattern: str) -> str:
    bounded(len(pattern) * 100)
    return datetime.now().strftime(pattern)


def plain(value: Any) -> Any:
    """A copy made of JSON types only: objects of other kinds have methods that the sandbox does not know."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, str):
        return str.__str__(value)
    dump: Callable[[], Any] | None = getattr(value, "model_dump", None)
    return plain(dump()) if callable(dump) else f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under every name that templates read, whichever the client used."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None) if isinstance(message, dict) else None
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
