"""A tokenizer that is ready at once.

`tokenizers` takes longer to build its tables from tokenizer.json than a small model takes to answer. This one decodes, and encodes the first
texts, from mapped tables (`_tables.py`), and builds the tokenizer when it is asked for something that they do not know.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._tables import Tables, make

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.map"
FIRST_TEXTS = 2  # who encodes more of them is better served by the tokenizer


class _Added(NamedTuple):
    content: str
    special: bool


class _Encoding(NamedTuple):
    ids: list[int]


class _Decoder(NamedTuple):
    state: bytes

    def __getstate__(self) -> bytes:
        return self.state


class MappedTokenizer:
    """Answers like a `tokenizers.Tokenizer`. `build` makes the tokenizer that the tables were made of."""

    def __init__(self, tables: Tables, build: Callable[[], Tokenizer]) -> None:
        self._tables, self._build = tables, build
        self._lock = threading.Lock()
        self._real: Tokenizer | None = None
        self._encoded = 0
        state = tables.header["decoder"]
        self.decoder = _Decoder(state.encode()) if state != "null" else None

    @staticmethod
    def open(path: Path, build: Callable[[], Tokenizer]) -> MappedTokenizer | None:
        """None where there are no tables, or none that can be read."""
        try:
            return MappedTokenizer(Tables.open(path), build)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @staticmethod
    def write(path: Path, tokenizer: Tokenizer) -> None:
        """Tables of a tokenizer, or an empty file where there can be none. Raises OSError."""
        import os
        import tempfile

        data = make(tokenizer)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            file.write(data or b"")
        os.replace(file.name, path)

    @property
    def real(self) -> Tokenizer:
        with self._lock:
            if self._real is None:
                self._real = self._build()
            return self._real

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        if self._real is None and self._encoded < FIRST_TEXTS:
            self._encoded += 1
            ids = self._tables.encode(text, add_special_tokens)
            if ids is not None:
                return _Encoding(ids)
        return self.real.encode(text, add_special_tokens=add_special_tokens)

    def get_added_tokens_decoder(self) -> dict[int, _Added]:
        return {i: _Added(text, special) for i, (text, special) in self._tables.added.items()}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return len(self._tables.order) if with_added_tokens else self.real.get_vocab_size(with_added_tokens=False)

    def id_to_token(self, i: int) -> str | None:
        return self._tables.token(i)

    def token_to_id(self, token: str) -> int | None:
        return self._tables.id(token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)
