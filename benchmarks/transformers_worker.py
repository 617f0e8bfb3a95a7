"""transformers' side of peers.py: bf16, and its weights rounded by bitsandbytes (nf4) or torchao (int8) where they run on this CPU.

Reads one JSON object a line, answers with one a line; see `peers.py` for the cases. A plain loop around the model's forward with its
dynamic cache and an argmax; logits of the last position only; all prompts of a case are of one length, so they make one batch without padding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM


def open_model(folder: Path, form: str) -> Any:
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if form == "nf4":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", **options).eval()
    if form == "int8":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def weight_bytes(model: Any) -> int:
    """Of parameters and buffers, each storage once; a torchao tensor's parts are asked one by one."""
    sizes: dict[int, int] = {}
    for value in [*model.parameters(), *model.buffers()]:
        parts = [getattr(value, name) for name in value.__tensor_flatten__()[0]] if hasattr(value, "__tensor_flatten__") else [value]
        state = getattr(value, "quant_state", None)
        for part in [*parts, *([state.absmax] if state is not None else [])]:
            if torch.is_tensor(part) and not hasattr(part, "__tensor_flatten__"):
                sizes[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
    return sum(sizes.values())


@torch.inference_mode()
def run(model: Any, prompts: list[list[int]], new: int) -> dict[str, Any]:
    start = time.perf_counter()
    out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    text = [token]
    first = time.perf_counter() - start
    for _ in range(new - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        text.append(token)
    tokens = torch.cat(text, 1).tolist()
    return {"first": first, "total": time.perf_counter() - start, "after_first": (new - 1) * len(prompts), "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the model, with hf/ in it")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")  # what the libraries print must not mix with the answers
    os.dup2(2, 1)
    print(json.dumps({"version": f"transformers {version('transformers')}, torch {torch.__version__}", "setting": "eager, dynamic cache"}),
          file=answers, flush=True)
    form, model = "", None
    for line in sys.stdin:
        task = json.loads(line)
        if form != task["form"]:
            form, model = task["form"], None
            model = open_model(args.folder, form)
            size = weight_bytes(model)
        print(json.dumps({**run(model, task["prompts"], task["new"]), "weight_bytes": size}), file=answers, flush=True)


if __name__ == "__main__":
    main()
