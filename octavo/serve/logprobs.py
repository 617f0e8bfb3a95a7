"""Log probabilities in the two shapes of OpenAI's APIs."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..engine.request import TokenLogprob

if TYPE_CHECKING:
    from ..text import Text

LEAST = -9999.0  # JSON has no minus infinity


def token_text(data: bytes) -> str:
    """A token as text; one that is no whole character as `bytes:\\xe2\\x80`, as OpenAI writes it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(text: Text, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """The entries of choices[].logprobs.content."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = text.token_bytes(token)
        return {"token": token_text(data), "logprob": max(logprob, LEAST), "bytes": list(data)}

    return [{**entry(item.token, item.logprob), "top_logprobs": [entry(*pair) for pair in item.top]} for item in logprobs]


class CompletionLogprobs:
    """choices[].logprobs of /v1/completions: parallel lists, with the place of each token in the text."""

    def __init__(self, text: Text, top: int) -> None:
        self._text, self._top = text, top
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")   # offsets count characters, which may span tokens

    def of(self, items: Iterable[tuple[int, TokenLogprob | None]]) -> dict[str, Any]:
        """`items`: tokens with what is known of them (None for a first token, which nothing predicts)."""
        tokens: list[str] = []
        scores: list[float | None] = []
        top: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token, item in items:
            data = self._text.token_bytes(token)
            tokens.append(token_text(data))
            scores.append(None if item is None else max(item.logprob, LEAST))
            top.append(None if item is None else {token_text(self._text.token_bytes(t)): max(p, LEAST) for t, p in item.top})
            offsets.append(self._offset)
            self._offset += len(self._utf8.decode(data))
        return {"tokens": tokens, "token_logprobs": scores, "top_logprobs": top if self._top else None, "text_offset": offsets}
