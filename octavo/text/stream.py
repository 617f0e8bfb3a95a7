"""Decoding token by token.

A token is a run of bytes (`Pieces`); a character may be spread over several tokens and is given out when it is complete. This knows the
two decoders that language models use, byte level (GPT-2, Llama 3, Qwen) and SentencePiece with byte fallback (Llama 2, Gemma), and
decodes with any other decoder by comparing the text of the last tokens with and without the new one.

One difference from `tokenizers` on purpose: there, an invalid byte in a run of fallback bytes turns the whole run into replacement
characters; here only the invalid bytes are replaced, because what was streamed cannot be taken back.
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .mapped import MappedTokenizer


class Pieces:
    """Token id -> bytes, looked up once per id. `special` are the ids that skip_special leaves out."""

    def __init__(self, tokenizer: Tokenizer | MappedTokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        self._known: dict[int, bytes] = {}
        self.whole: dict[int, str] = {}           # texts of tokens seen so far that are whole characters and not special
        steps = _steps(tokenizer.decoder)
        kinds = {step["type"] for step in steps}
        self.byte_level = kinds == {"ByteLevel"}
        self.fallback = "ByteFallback" in kinds
        self.by_bytes = self.byte_level or (bool(kinds) and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
        self._replace = [(step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace" and "String" in step["pattern"]]
        self.first_space = 0                      # spaces to leave out at the start of a text
        for step in steps:
            if step["type"] == "Strip" and step["content"] == " ":
                self.first_space = step["start"]
                self.by_bytes &= step["stop"] == 0
            elif step["type"] == "Metaspace":
                self._replace.append((step["replacement"], " "))
                self.first_space = 0 if step.get("prepend_scheme") == "never" else 1
            elif step["type"] == "Replace" and "String" not in step["pattern"]:
                self.by_bytes = False

    def __getitem__(self, token: int) -> bytes:
        piece = self._known.get(token)
        if piece is None:
            piece = self._known[token] = self._bytes(token)
        return piece

    def _bytes(self, token: int) -> bytes:
        name = self.tokenizer.id_to_token(token) if token >= 0 else None
        if name is None:
            return b""
        if self.byte_level:
            try:
                return bytes([_BYTE_OF[c] for c in name])
            except KeyError:                      # an added token with characters that are no byte's sign stands for itself
                return name.encode()
        if self.fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        for pattern, content in self._replace:
            name = name.replace(pattern, content)
        return name.encode()


class Stream:
    """Incremental decoder of one sequence. The texts of all `push` calls and of `flush` together are its text."""

    def __init__(self, pieces: Pieces, *, skip_special: bool = True, continued: bool = False) -> None:
        self._pieces = pieces
        self._skip = pieces.special if skip_special else frozenset()
        self._spaces = 0 if continued else pieces.first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._between = False            # between two characters: what comes next stands for itself
        self._window: list[int] = []     # other decoders: the tokens that the next text depends on
        self._read = 0                   # of which this many are decoded

    def push(self, token: int) -> str:
        """The text that is certain now that `token` follows; may be empty."""
        if self._between and (known := self._pieces.whole.get(token)) is not None:
            return known
        if token in self._skip:
            return ""
        if not self._pieces.by_bytes:
            return self._compare(token)
        text = self._utf8.decode(self._pieces[token])
        before, self._between = self._between, not self._spaces and not self._utf8.getstate()[0]
        if before and self._between and token not in self._pieces.special:
            self._pieces.whole[token] = text
        while self._spaces and text:
            self._spaces -= 1
            if not text.startswith(" "):
                self._spaces = 0
            else:
                text = text[1:]
        return text

    def flush(self) -> str:
        """The end of the text: bytes that never became a character are replaced by U+FFFD."""
        if self._pieces.by_bytes:
            self._between = False
            return self._utf8.decode(b"", final=True)
        before, after = self._decode(self._window[: self._read]), self._decode(self._window)
        self._window, self._read = [], 0
        return after[len(before) :]

    def _compare(self, token: int) -> str:
        """For decoders of other kinds: what the text of the last tokens gains by the new one."""
        self._window.append(token)
        before, after = self._decode(self._window[: self._read]), self._decode(self._window)
        if len(after) <= len(before) or after.endswith("\ufffd"):
            return ""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._pieces.tokenizer.decode(ids, skip_special_tokens=False) if ids else ""


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """The decoder of a tokenizer.json as a flat list."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def byte_signs() -> dict[str, int]:
    """Sign -> byte of the byte-level alphabet of GPT-2: printable bytes stand for themselves, the others for 256, 257 ... in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    signs = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    return signs | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = byte_signs()
