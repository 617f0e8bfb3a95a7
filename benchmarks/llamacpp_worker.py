"""The llama.cpp side of peers.py: runs in the peer's own interpreter, which needs llama-cpp-python and NumPy, nothing of Octavo.

Reads one JSON object a line, answers with one a line; see `peers.py` for the cases. Tokens are chosen greedily by an argmax over the
logits, the cheapest a client can do. Batch and micro-batch are 512; flash attention is on; each sequence has its own part of the cache.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as C
import numpy as np

FTYPE = {"f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # llama_ftype in llama.h
SILENT = C.llama_log_callback(lambda level, text, data: None)


def quantize(source: Path, target: Path, ftype: str) -> None:
    """`target` from `source` with llama.cpp's own quantizer, once."""
    if target.exists():
        return
    params = C.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FTYPE[ftype], True
    partial = target.with_suffix(".part")
    print(f"making {target.name}", file=sys.stderr, flush=True)
    if C.llama_model_quantize(str(source).encode(), str(partial).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantize {source} to {ftype}")
    partial.rename(target)


class Session:
    """A model and a context of `users` sequences of up to `length` tokens each."""

    def __init__(self, path: Path, threads: int, users: int, length: int, flash: int, unified: bool) -> None:
        model_params = C.llama_model_default_params()
        self.model = C.llama_model_load_from_file(str(path).encode(), model_params)
        params = C.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = users * length, 512, 512, users
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type, params.kv_unified = flash, unified
        self.ctx = C.llama_init_from_model(self.model, params)
        self.vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self.model))
        self.batch = C.llama_batch_init(512, 0, 1)

    def close(self) -> None:
        C.llama_batch_free(self.batch)
        C.llama_free(self.ctx)
        C.llama_model_free(self.model)

    def clear(self) -> None:
        C.llama_memory_clear(C.llama_get_memory(self.ctx), False)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One forward of rows (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, sequence, wanted
        if C.llama_decode(self.ctx, batch):
            raise SystemExit("llama_decode failed")

    def best(self, row: int) -> int:
        logits = np.ctypeslib.as_array(C.llama_get_logits_ith(self.ctx, row), shape=(self.vocab,))
        return int(logits.argmax())

    def run(self, prompts: list[list[int]], new: int) -> dict[str, Any]:
        """`new` tokens for each prompt, all prompts in batches of 512 rows first: seconds to the first tokens and to the end."""
        self.clear()
        start = time.perf_counter()
        rows = [(token, i, s, i == len(prompt) - 1) for s, prompt in enumerate(prompts) for i, token in enumerate(prompt)]
        tokens = [0] * len(prompts)
        for a in range(0, len(rows), 512):
            part = rows[a : a + 512]
            self.decode(part)
            for i, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    tokens[sequence] = self.best(i)
        first = time.perf_counter() - start
        text = [list(tokens)]
        for i in range(new - 1):
            self.decode([(token, len(prompts[s]) + i, s, True) for s, token in enumerate(tokens)])
            tokens = [self.best(s) for s in range(len(prompts))]
            text.append(list(tokens))
        return {"first": first, "total": time.perf_counter() - start, "after_first": (new - 1) * len(prompts),
                "tokens": [list(column) for column in zip(*text, strict=True)], "weight_bytes": C.llama_model_size(self.model)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the model: f16.gguf or source.gguf, and what is made of them")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    C.llama_log_set(SILENT, None)
    answers = os.fdopen(os.dup(1), "w")  # what the library prints must not mix with the answers
    os.dup2(2, 1)
    full = args.folder / "f16.gguf"
    if not full.exists():
        quantize(args.folder / "source.gguf", full, "f16")
    parts = [part.split("=")[0].split(":")[-1].strip() for part in C.llama_print_system_info().decode().split("|") if part.strip().endswith("= 1")]
    print(json.dumps({"version": f"llama-cpp-python {C.__version__} ({', '.join(parts)})",
                      "setting": "built for this CPU, flash attention, batches of 512, weights repacked"}), file=answers, flush=True)
    open_now: tuple[tuple[Any, ...], Session] | None = None  # one at a time: a model of 16 bits and its copies would fill the memory
    for line in sys.stdin:
        task = json.loads(line)
        key = (task["form"], len(task["prompts"]), task["length"])
        if open_now is None or open_now[0] != key:
            if open_now is not None:
                open_now[1].close()
            path = args.folder / f"{task['form']}.gguf"
            quantize(full, path, task["form"])
            open_now = key, Session(path, args.threads, *key[1:], flash=1, unified=False)
        print(json.dumps(open_now[1].run(task["prompts"], task["new"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
