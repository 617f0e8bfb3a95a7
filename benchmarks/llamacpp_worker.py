"""The llama.cpp side of peers.py: runs in the peer's own interpreter, which needs llama-cpp-python and NumPy, nothing of Octavo.

Reads one JSON object a line, answers with one a line; see `peers.py` for the cases. Tokens are chosen greedily by an argmax over the
logits, the cheapest a client can do. Batch and micro-batch are 512; flash attention and the layout of the cache are what --tune finds
best on this machine.
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

FTYPE = {"f16": 1, "q4_0": 2, "q8_0": 7}  # llama_ftype in llama.h
SILENT = C.llama_log_callback(lambda level, text, data: None)


def quantize(source: Path, target: Path, ftype: str) -> None:
    """`target` from `source` with llama.cpp's own quantizer, once."""
    if target.exists():
        return
    params = C.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FTYPE[ftype], True
    partial = target.with_suffix(".part")
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
        return {"first": first, "total": time.perf_counter() - start, "tokens": [list(column) for column in zip(*text, strict=True)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the .gguf file as it comes")
    parser.add_argument("--work", type=Path, required=True, help="folder for the quantized files")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    C.llama_log_set(SILENT, None)
    answers = os.fdopen(os.dup(1), "w")  # what the library prints must not mix with the answers
    os.dup2(2, 1)
    files = {"16bit": args.work / "peer-f16.gguf", "8bit": args.work / "peer-q8_0.gguf", "4bit": args.work / "peer-q4_0.gguf"}
    quantize(args.model, files["16bit"], "f16")
    quantize(files["16bit"], files["8bit"], "q8_0")
    quantize(files["16bit"], files["4bit"], "q4_0")
    print(json.dumps({"name": f"llama.cpp (llama-cpp-python {C.__version__})", "info": C.llama_print_system_info().decode()}), file=answers, flush=True)
    sessions: dict[tuple[Any, ...], Session] = {}
    for line in sys.stdin:
        task = json.loads(line)
        key = (task["scheme"], len(task["prompts"]), task["length"], task.get("flash", -1), task.get("unified", False))
        if key not in sessions:
            sessions[key] = Session(files[task["scheme"]], args.threads, *key[1:])
        print(json.dumps(sessions[key].run(task["prompts"], task["new"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
