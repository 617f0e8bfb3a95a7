"""usage: the tokens that a request cost."""

from __future__ import annotations

from typing import Any

from ..engine.request import Delta


class Usage:
    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = prompt_tokens, 0, 0

    def count(self, delta: Delta) -> None:
        """Tokens of all choices; the prompt's cached tokens once, as the first choice found them."""
        self.completion_tokens += len(delta.tokens)
        if delta.choice == 0:
            self.cached_tokens += delta.cached_tokens

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
