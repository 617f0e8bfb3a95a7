"""The OpenVINO side of peers.py: runs in the peer's own interpreter, which needs openvino-genai; to make the models also openvino-tokenizers,
nncf, optimum-intel and a transformers that this one knows (below 5.6).

Reads one JSON object a line, answers with one a line; see `peers.py` for the cases. OpenVINO GenAI runs its continuous batching (paged
attention), which was faster on two AVX2 cores than its plain pipeline at every case: whole prompts in one step, hint LATENCY, 8-bit cache,
dynamic quantization as it comes. Weights: nncf, int4 symmetric in groups of 64 (embedding and head 8 bits), int8 symmetric per channel.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

MODES = {"int4": "INT4_SYM", "int8": "INT8_SYM"}


def convert(folder: Path, form: str) -> Path:
    """The model of `folder`/hf as OpenVINO IR with weights of `form`, made unless it is there."""
    target = folder / f"ov-{form}"
    if (target / "openvino_model.xml").exists():
        return target
    print(f"making {target.name}", file=sys.stderr, flush=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if form == "f16":
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig

        main_export(str(folder / "hf"), output=target, task="text-generation-with-past", ov_config=OVConfig(dtype="fp16"))
        return target
    import nncf

    full = convert(folder, "f16")
    options = {"group_size": 64, "ratio": 1.0} if form == "int4" else {}
    model = nncf.compress_weights(ov.Core().read_model(full / "openvino_model.xml"), mode=nncf.CompressWeightsMode[MODES[form]], **options)
    partial = folder / f"ov-{form}.part"
    partial.mkdir(exist_ok=True)
    ov.save_model(model, partial / "openvino_model.xml", compress_to_fp16=True)
    for file in full.iterdir():
        if not file.name.startswith("openvino_model."):
            shutil.copy(file, partial)
    partial.rename(target)
    return target


def open_pipeline(path: Path, threads: int) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs, scheduler.num_kv_blocks = 4096, 64, 512
    scheduler.enable_prefix_caching = False
    return genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"})


def run(pipeline: Any, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """`new` greedy tokens for each prompt, all submitted at once: seconds to the last of the first tokens and to the end."""
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new
    config.ignore_eos, config.do_sample = True, False
    tokens: list[list[int]] = [[] for _ in prompts]
    start = time.perf_counter()
    handles = [pipeline.add_request(i, ov.Tensor(np.array([prompt], np.int64)), config) for i, prompt in enumerate(prompts)]
    first = after_first = None
    while pipeline.has_non_finished_requests():
        pipeline.step()
        for handle, mine in zip(handles, tokens, strict=True):
            if handle.can_read():
                for output in handle.read().values():
                    mine.extend(output.generated_ids)
        if first is None and all(tokens):
            first = time.perf_counter() - start
            after_first = new * len(prompts) - sum(map(len, tokens))
    total = time.perf_counter() - start
    if any(len(mine) != new for mine in tokens):
        raise SystemExit(f"OpenVINO: expected {new} tokens for each user, got {sorted({len(mine) for mine in tokens})}")
    return {"first": first, "total": total, "after_first": after_first, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the model: hf/, and what is made of it")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # what the library prints must not mix with the answers
    os.dup2(2, 1)
    print(json.dumps({"version": f"openvino-genai {genai.__version__}",
                      "setting": "continuous batching, hint LATENCY, whole prompts in one step, cache and dynamic quantization as they come"}),
          file=answers, flush=True)
    form, pipeline = "", None
    for line in sys.stdin:
        task = json.loads(line)
        if form != task["form"]:
            form, pipeline = task["form"], None
            gc.collect()
            path = convert(args.folder, form)
            pipeline = open_pipeline(path, args.threads)
        answer = run(pipeline, task["prompts"], task["new"])
        print(json.dumps({**answer, "weight_bytes": (path / "openvino_model.bin").stat().st_size}), file=answers, flush=True)


if __name__ == "__main__":
    main()
