"""A sentence encoder (all-MiniLM-L6-v2) as any torch module: similarity before and after, and speed against onnxruntime's int8 of the same model.

    python benchmarks/modules.py MODEL --calibration FILE.jsonl --text FILE.txt [--sentences 500] [--scheme W8A8 ...] [--onnx FOLDER] [--batch 1 8 32] [--json]

Quality: mean cosine of the pooled embeddings to those of the float model, and Spearman's correlation of all pairwise similarities. Calibration comes from
--calibration (JSON lines with a "text"), evaluation from --text. Speed (with --onnx, where onnxruntime is installed; the export is kept in that folder):
dynamic int8 of signed and of unsigned weights and of the graph fused by its own optimizer, each with --threads threads and with one, in a process of its own;
the whole model from ids to hidden states, on --batches batches spread over the sentences, ours and theirs in turn. Of each the median of three runs after
one that warms up; printed is the median of the paired ratios (their time over ours) and where 80% of them lie, for the fastest of theirs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from octavo import modules

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?]) ", text) if 40 < len(part.strip()) < 250]


def batches(tokenizer: Any, lines: list[str], size: int) -> list[dict[str, torch.Tensor]]:
    return [dict(tokenizer(lines[i : i + size], padding=True, return_tensors="pt")) for i in range(0, len(lines), size)]


def spread(data: list[Any], count: int) -> list[Any]:
    """`count` of them, evenly."""
    return data[:: max(1, len(data) // count)][:count]


def embeddings(model: Any, data: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Mean-pooled and normalized, [sentences, width]."""
    found = []
    with torch.inference_mode():
        for batch in data:
            real = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (model(**batch).last_hidden_state * real).sum(1) / real.sum(1)
            found.append(torch.nn.functional.normalize(pooled, dim=1))
    return torch.cat(found)


def agreement(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    above = np.triu_indices(len(one), 1)
    ranks = [np.argsort(np.argsort((e @ e.T).numpy()[above])) for e in (one, other)]
    return {"cosine": float((one * other).sum(1).mean()), "lowest_cosine": float((one * other).sum(1).min()), "spearman": float(np.corrcoef(*ranks)[0, 1])}


def exported(model: Any, sample: dict[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """onnxruntime's forms of the model, made where they are not yet: dynamic quantization with signed and unsigned weights, and of the graph that its own
    optimizer for BERT models has fused."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    plain, fused = folder / "model.onnx", folder / "model-fused.onnx"
    if not plain.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        axes = {name: {0: "batch", 1: "length"} for name in (*INPUTS, "hidden")}
        torch.onnx.export(Hidden(), tuple(sample[n] for n in INPUTS), str(plain), input_names=list(INPUTS), output_names=["hidden"], dynamic_axes=axes,
                          opset_version=17, dynamo=False)
    found = {"int8": folder / "model-int8.onnx", "uint8": folder / "model-uint8.onnx", "fused int8": folder / "model-fused-int8.onnx"}
    if not found["fused int8"].is_file():
        config = model.config
        optimizer.optimize_model(str(plain), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size).save_model_to_file(str(fused))
        quantize_dynamic(str(fused), str(found["fused int8"]), weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
    for name, kind in (("int8", QuantType.QInt8), ("uint8", QuantType.QUInt8)):
        if not found[name].is_file():
            quantize_dynamic(str(plain), str(found[name]), weight_type=kind)
    return found


def peer(files: dict[str, Path], threads: list[int], sizes: dict[int, list[dict[str, np.ndarray]]], pipe: Any) -> None:
    """The other process: says which sessions it has, then answers (name, batch size, index) with the seconds of a run of that session."""
    import onnxruntime

    sessions = {}
    for name, file in files.items():
        for count in threads:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = count, 1
            sessions[f"onnxruntime {onnxruntime.__version__} {name}, {count} threads"] = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"])
    pipe.send(list(sessions))
    while (asked := pipe.recv()) is not None:
        session, batch = sessions[asked[0]], sizes[asked[1]][asked[2]]
        pipe.send(seconds(partial(session.run, None), {i.name: batch[i.name] for i in session.get_inputs()}))


def seconds(run: Callable[[Any], Any], batch: Any) -> float:
    """Of one of three runs, the middle one, after one that wakes threads and fills caches."""
    run(batch)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def speed(models: dict[str, Any], files: dict[str, Path], sizes: dict[int, list[dict[str, torch.Tensor]]], threads: int) -> dict[str, Any]:
    """{batch size: {"ms": median of each, "ratios": of each of theirs to each of ours: median, 10% and 90% of the paired ratios}}."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arrays = {size: [{n: b[n].numpy() for n in INPUTS} for b in data] for size, data in sizes.items()}
    other = context.Process(target=peer, args=(files, sorted({1, threads}), arrays, there))
    other.start()
    theirs: list[str] = here.recv()
    report: dict[str, Any] = {}
    for size, data in sizes.items():
        times: dict[str, list[float]] = {name: [] for name in (*models, *theirs)}
        for i, batch in enumerate(data):
            for name in list(times) if i % 2 else list(times)[::-1]:
                time.sleep(0.05)  # threads of the one before still spin for a while: with 5 ms either side took up to twice as long in every other turn
                if name in models:
                    with torch.inference_mode():
                        times[name].append(seconds(lambda given, model=models[name]: model(**given), batch))
                else:
                    here.send((name, size, i))
                    times[name].append(here.recv())
        ratios = {}
        for mine in models:
            for name in theirs:
                pairs = [b / a for a, b in zip(times[mine], times[name])]
                ratios.setdefault(mine, {})[name] = [statistics.median(pairs), *np.percentile(pairs, [10, 90]).tolist()]
        report[str(size)] = {"batches": len(data), "ms": {n: 1e3 * statistics.median(t) for n, t in times.items()},
                             "least_ms": {n: 1e3 * min(t) for n, t in times.items()}, "ratios": ratios}
    here.send(None)
    other.join()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--calibrate-on", type=int, default=128)
    parser.add_argument("--scheme", nargs="+", default=["W8A8", "W8A8tsz"])
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["quality", "speed"])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = AutoModel.from_pretrained(given.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    lines = sentences(given.text.read_text())[: given.sentences]
    texts = [json.loads(line)["text"] for line in given.calibration.read_text().splitlines()]
    calibration = [s for text in texts for s in sentences(text)][:: max(1, len(texts) // given.calibrate_on)][: given.calibrate_on]
    known = batches(tokenizer, sorted(calibration, key=len), 16)
    data = batches(tokenizer, sorted(lines, key=len), 32)
    report: dict[str, Any] = {"sentences": len(lines), "threads": given.threads, "quality": {}, "speed": {}}
    models = {scheme: modules.quantize(model, scheme, data=known) for scheme in given.scheme}
    if given.only != "speed":
        truth = embeddings(model, data)
        report["quality"] = {scheme: agreement(truth, embeddings(quantized, data)) for scheme, quantized in models.items()}
    if given.onnx and given.only != "quality":
        files = exported(AutoModel.from_pretrained(given.model, dtype=torch.float32, attn_implementation="eager").eval(), known[0], given.onnx)
        sizes = {size: spread(batches(tokenizer, lines, size), given.batches if size < 32 else max(3, given.batches // 4)) for size in given.batch}
        report["speed"] = speed(models, files, sizes, given.threads)
    if given.json:
        print(json.dumps(report))
        return
    for scheme in models:
        if found := report["quality"].get(scheme):
            print(f"{scheme}: cosine {found['cosine']:.5f} (lowest {found['lowest_cosine']:.4f}), Spearman {found['spearman']:.5f}, {len(lines)} sentences")
        for size, result in report["speed"].items():
            fastest, (ratio, low, high) = min(result["ratios"][scheme].items(), key=lambda item: item[1][0])
            print(f"  batch {size}: {scheme} has {ratio:.2f} times the speed of {fastest} [{low:.2f} to {high:.2f}]; {result['ms'][scheme]:.2f} ms")
    for size, result in report["speed"].items():
        print(f"batch {size}, {result['batches']} batches, median ms: " + ", ".join(f"{name} {ms:.2f}" for name, ms in result["ms"].items()))


if __name__ == "__main__":
    main()
