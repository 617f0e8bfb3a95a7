"""The tables of a tokenizer as a file that is mapped: sorted arrays instead of hash maps, so that nothing is built when it is opened.

    b"OCTAVOT1", u64 length of the header, header (JSON, padded to a multiple of 8), then, little endian:
    u64 pairs[m]     left id << 32 | right id, ascending
    u64 merges[m]    rank << 32 | id of the whole, in the order of `pairs`
    u32 ends[v + 1]  token i is the UTF-8 between ends[i] and ends[i + 1] of the rest
    u32 order[v]     token ids in the order of their UTF-8
    the rest         all tokens, one after the other

It encodes ASCII text by byte-level BPE (GPT-2, Llama 3, Qwen 2 and their like). `make` gives out no file that does not agree with the tokenizer.
"""

from __future__ import annotations

import json
import mmap
import re
import sys
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._cuts import cut, rules
from .stream import byte_signs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAGIC = b"OCTAVOT1"
LONGEST_TEXT = 20_000  # characters; for longer texts it pays to build the tokenizer
LONGEST_WORD = 100
NEVER = 1 << 64        # above every rank
SAMPLES = (
    "", " ", "Hello, world!", "  two  spaces\n\n\tand tabs \r\n", "I'll say we've 12345 apples, they'RE 3.14", "def f(x):\n    return x**2  # x\n\n\n",
    "https://example.org/?q=1&r=%20", "ALL CAPS and mIxEd", "".join(map(chr, range(128))), "a" * 90, "<|im_start|>user\nHi<|im_end|>\n<|end",
    "\x00\x1c\x1f\x7f",
    "The quick brown fox jumps over the lazy dog. " * 3, "{\"key\": [1, 2.5e-3, null]}", "'s's 't ''", "_under_score__ --- ...   !!!???", "x\n \n  y   ",
)


class Tables:
    """The file's tables. Raises ValueError for bytes that are none, KeyError or TypeError for a header that lacks something."""

    def __init__(self, data: Any) -> None:
        view = memoryview(data)
        if bytes(view[:8]) != MAGIC or sys.byteorder != "little":
            raise ValueError("no mapped tokenizer")
        at = 16 + int.from_bytes(view[8:16], "little")
        h = self.header = json.loads(bytes(view[16:at]))
        m, v = h["merges"], h["tokens"]
        self.pairs, self.merges = view[at : at + 8 * m].cast("Q"), view[at + 8 * m : at + 16 * m].cast("Q")
        at += 16 * m
        self.ends, self.order = view[at : at + 4 * v + 4].cast("I"), view[at + 4 * v + 4 : at + 8 * v + 4].cast("I")
        self.strings = view[at + 8 * v + 4 :]
        if len(self.merges) != m or len(self.order) != v or self.ends[v] != len(self.strings):
            raise ValueError("a mapped tokenizer that is cut short")
        self.of_byte: list[int] = h["bytes"]
        self.cuts = [re.compile(expression, re.ASCII) for expression in h["cuts"]]
        self.added: dict[int, tuple[str, bool]] = {i: (text, special) for i, text, special, _ in h["added"]}
        self.added_ids = {text: i for i, (text, _) in self.added.items()}
        self._added_early, self._added_late = (_any_of([text for _, text, _, late in h["added"] if late == when]) for when in (False, True))

    @staticmethod
    def open(path: Path) -> Tables:
        """Raises OSError too."""
        with path.open("rb") as file:
            return Tables(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def token(self, i: int) -> str | None:
        return str(self._utf8(i), "utf-8") if 0 <= i < len(self.order) else None

    def id(self, token: str) -> int | None:
        wanted = token.encode(errors="surrogatepass")
        at = bisect_left(self.order, wanted, key=lambda i: bytes(self._utf8(i)))
        return self.order[at] if at < len(self.order) and self._utf8(self.order[at]) == wanted else None

    def encode(self, text: str, special: bool) -> list[int] | None:
        """Token ids; None for a text that is not for this."""
        if not text.isascii() or len(text) > LONGEST_TEXT:
            return None
        ids: list[int] = []
        for piece, added in self._apart(text):
            if added:
                ids.append(self.added_ids[piece])
                continue
            for word in cut(piece, self.cuts):
                found = self._word(word)
                if found is None:
                    return None
                ids += found
        return [*self.header["before"], *ids, *self.header["after"]] if special else ids

    def _utf8(self, i: int) -> memoryview:
        return self.strings[self.ends[i] : self.ends[i + 1]]

    def _apart(self, text: str) -> Iterator[tuple[str, bool]]:
        """The pieces between added tokens, and the tokens: first those looked for in the text as it is, in what is left those looked for after it
        was normalized, which changes no ASCII text here."""
        for piece, added in _split(text, self._added_early):
            yield from [(piece, True)] if added else _split(piece, self._added_late)

    def _word(self, word: str) -> list[int] | None:
        """Byte-level BPE: of all neighbours that merge, those of the lowest rank first, from the left."""
        ids = [self.of_byte[ord(c)] for c in word]
        if len(word) > LONGEST_WORD or min(ids) < 0:
            return None
        if self.header["whole_words"] and (whole := self.id("".join(SIGNS[ord(c)] for c in word))) is not None:
            return [whole]
        ranks = [self._merge(a, b) for a, b in pairwise(ids)]
        while ranks and (best := min(ranks)) < NEVER:
            i = ranks.index(best)
            ids[i : i + 2] = [best & 0xFFFFFFFF]
            del ranks[i]
            if i:
                ranks[i - 1] = self._merge(ids[i - 1], ids[i])
            if i < len(ranks):
                ranks[i] = self._merge(ids[i], ids[i + 1])
        return ids

    def _merge(self, left: int, right: int) -> int:
        pair = left << 32 | right
        at = bisect_left(self.pairs, pair)
        return self.merges[at] if at < len(self.pairs) and self.pairs[at] == pair else NEVER


SIGNS = {byte: sign for sign, byte in byte_signs().items()}


def make(tokenizer: Tokenizer) -> bytes | None:
    """The file for a tokenizer; None for one that works in another way, or that this would not equal on every sample."""
    try:
        data = _bytes_of(json.loads(tokenizer.to_str()))
        tables = Tables(data) if data is not None else None
    except (KeyError, TypeError, ValueError):
        return None
    if tables is None:
        return None
    for text in (*SAMPLES, *(f"a{token}b {token}{token}" for token in tables.added_ids)):
        for special in (False, True):
            found = tables.encode(text, special)
            if found is not None and found != tokenizer.encode(text, add_special_tokens=special).ids:
                return None
    return data


def _bytes_of(described: dict[str, Any]) -> bytes | None:
    """The file for a tokenizer.json."""
    import numpy as np

    model, added = described["model"], described["added_tokens"]
    cuts, around = rules(described["pre_tokenizer"]), _around(described["post_processor"])
    plain = model["type"] == "BPE" and not any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"))
    if not plain or cuts is None or around is None or described["truncation"] or described["padding"]:
        return None
    if (described["normalizer"] or {"type": "NFC"})["type"] not in ("NFC", "NFKC"):
        return None
    if any(a["single_word"] or a["lstrip"] or a["rstrip"] or not a["content"] for a in added):
        return None
    ids: dict[str, int] = {**model["vocab"], **{a["content"]: a["id"] for a in added}}
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        return None
    pairs, merges = [], []
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        pairs.append(model["vocab"][left] << 32 | model["vocab"][right])
        merges.append(rank << 32 | model["vocab"][left + right])
    order = np.argsort(np.array(pairs, np.uint64), kind="stable")
    utf8 = [token.encode() for token in tokens]
    header = json.dumps({
        "merges": len(pairs), "tokens": len(tokens), "cuts": cuts, "bytes": [model["vocab"].get(SIGNS[b], -1) for b in range(128)],
        "added": [[a["id"], a["content"], a["special"], a["normalized"]] for a in added], "before": around[0], "after": around[1],
        "decoder": json.dumps(described["decoder"]), "whole_words": bool(model.get("ignore_merges")),
    }).encode()
    header += b" " * (-len(header) % 8)
    arrays = [np.array(pairs, "<u8")[order], np.array(merges, "<u8")[order], np.cumsum([0, *map(len, utf8)]).astype("<u4"),
              np.array(sorted(range(len(utf8)), key=utf8.__getitem__), "<u4")]
    return b"".join([MAGIC, len(header).to_bytes(8, "little"), header, *(a.tobytes() for a in arrays), *utf8])


def _around(processor: dict[str, Any] | None) -> tuple[list[int], list[int]] | None:
    """Ids before and after a text. A byte-level post-processor only moves offsets."""
    steps = [] if processor is None else processor["processors"] if processor["type"] == "Sequence" else [processor]
    before: list[int] = []
    after: list[int] = []
    for step in steps:
        if step["type"] == "TemplateProcessing":
            names = [piece["SpecialToken"]["id"] if "SpecialToken" in piece else None for piece in step["single"]]
            if names.count(None) != 1:
                return None
            middle = names.index(None)
            before = [i for name in names[:middle] for i in step["special_tokens"][name]["ids"]] + before
            after += [i for name in names[middle + 1 :] for i in step["special_tokens"][name]["ids"]]
        elif step["type"] != "ByteLevel":
            return None
    return before, after


def _any_of(texts: list[str]) -> re.Pattern[str] | None:
    """Matches the longest of the texts at the leftmost place."""
    return re.compile("(" + "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) + ")") if texts else None


def _split(text: str, pattern: re.Pattern[str] | None) -> Iterator[tuple[str, bool]]:
    """(piece, whether it is one of the texts of the pattern), none empty."""
    parts = [text] if pattern is None else pattern.split(text)
    return ((part, i % 2 == 1) for i, part in enumerate(parts) if part)
