"""What a tokenizer puts before a text by itself, for those who cut texts into sequences and begin each as the model expects."""

from __future__ import annotations

from typing import Protocol


class Tokenizer(Protocol):
    """What of a Text is needed to cut texts."""

    def encode(self, text: str, special: bool = True) -> list[int]: ...


def beginning(text: Tokenizer) -> list[int]:
    """Token ids that the tokenizer puts before every text by itself: [bos] or []."""
    plain, special = text.encode("a", special=False), text.encode("a", special=True)
    return next((special[:i] for i in range(len(special)) if special[i : i + len(plain)] == plain), [])
