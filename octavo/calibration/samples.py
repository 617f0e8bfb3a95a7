"""Samples: the token sequences that a model is calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UsageError
from ..text.beginning import Tokenizer, beginning
from ..text.documents import documents

SEQUENCES, TOKENS = 128, 512


@dataclass(frozen=True)
class Samples:
    """ids     int32 [sequences, tokens]
    name    what they were cut from, for the record
    digest  SHA-256 of the ids: what a receipt names
    """

    ids: np.ndarray
    name: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.ids, "<i4").tobytes()).hexdigest()


def read_samples(source: str | Path, tokenizer: Callable[[], Tokenizer], vocabulary: int, *, sequences: int = SEQUENCES, tokens: int = TOKENS,
                 seed: int = 0, texts: Sequence[str] | None = None) -> Samples:
    """Sequences of `tokens` tokens out of a file: .txt (one text), .jsonl (a text, or a chat, a line), .npy (token ids [sequences, tokens] as they are);
    or out of `texts`, and then `source` is what they are called.

    Texts are put in an order drawn from `seed`, tokenized, joined and cut, without overlap, until there are enough; each
    sequence begins with what the tokenizer puts before a text (a BOS token, or nothing). Raises UsageError when there is too little text, or the file is
    not what its name says.
    """
    path = Path(source).expanduser()
    if sequences < 1 or tokens < 2:
        raise UsageError(f"{sequences} sequences of {tokens} tokens", where="--sequences, --tokens", remedy="at least 1 of at least 2")
    if texts is None and path.suffix == ".npy":
        return Samples(_ids(path, vocabulary, sequences), path.name)
    encoder = tokenizer()
    begin = beginning(encoder)
    width = tokens - len(begin)
    texts = _texts(path) if texts is None else texts
    found: list[list[int]] = []
    rest: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(texts)):
        rest += encoder.encode(texts[index], special=False)
        while len(rest) >= width and len(found) < sequences:
            found.append([*begin, *rest[:width]])
            rest = rest[width:]
        if len(found) == sequences:
            break
    if len(found) < sequences:
        raise UsageError(f"{len(found)} sequences of {tokens} tokens are in it, {sequences} are wanted", where=str(path),
                         remedy="give more text, or fewer or shorter sequences (--sequences, --tokens)")
    return Samples(np.array(found, np.int32), path.name)


def _ids(path: Path, vocabulary: int, sequences: int) -> np.ndarray:
    try:
        ids = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from None
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size or ids.shape[1] < 2:
        raise UsageError(f"holds {ids.dtype} {list(ids.shape)}", where=str(path), remedy="token ids are integers [sequences, tokens]")
    ids = ids[:sequences]
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise UsageError(f"holds the token {int(ids.max() if ids.max() >= vocabulary else ids.min())}, the model has 0 to {vocabulary - 1}", where=str(path),
                         remedy="these are another model's tokens")
    return np.ascontiguousarray(ids, np.int32)


def _texts(path: Path) -> list[str]:
    try:
        return documents(path) if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path), remedy="calibration text is a .txt or .jsonl file in UTF-8, or .npy token ids") from None
