"""The calibration tokens that every library and Octavo get: int32 [rows, length] in a .npy file.

    python benchmarks/quality/calibration_ids.py MODEL TEXTS.jsonl OUT.npy [--rows 128] [--length 512]

Rule: the "text" of each line, in the file's order, joined by one newline, tokenized as a whole without special tokens, and cut from the start into rows
without overlap. Where the tokenizer begins texts with a token of its own (Gemma's <bos>), every row begins with it and then takes length - 1 tokens:
as in the windows that perplexity is measured on. A smaller set is the first rows of a larger one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np


def rows_of(ids: np.ndarray, begin: list[int], rows: int, length: int) -> np.ndarray:
    width = length - len(begin)
    if len(ids) < rows * width:
        raise SystemExit(f"the texts have {len(ids)} tokens, fewer than {rows} rows of {width}")
    body = ids[: rows * width].reshape(rows, width)
    return np.concatenate([np.tile(np.asarray(begin, np.int32), (rows, 1)), body], axis=1).astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()

    from octavo.loading import load
    from octavo.text.beginning import beginning

    tokenizer = load(options.model, quantization="16bit", use_cache=False).text
    texts = [json.loads(line)["text"] for line in options.texts.read_text(encoding="utf-8").splitlines()]
    ids = np.asarray(tokenizer.encode("\n".join(texts), special=False), np.int32)
    np.save(options.out, rows_of(ids, beginning(tokenizer), options.rows, options.length))


if __name__ == "__main__":
    main()
