"""A sentence encoder (all-MiniLM-L6-v2) as any torch module: similarity before and after, and speed against onnxruntime's int8 of the same model.

    python benchmarks/modules.py MODEL --calibration FILE.jsonl --text FILE.txt [--sentences 500] [--scheme W8A8 ...] [--onnx FOLDER] [--pairs 20] [--json]

Quality: mean cosine of the pooled embeddings to those of the float model, and Spearman's correlation of all pairwise similarities. Calibration comes from
--calibration (JSON lines with a "text"), evaluation from --text. Speed (with --onnx, where onnxruntime is installed; the export is kept in that folder):
quantize_dynamic with signed and unsigned weights, each the whole model from ids to hidden states, in pairs in turn with ours, batch 1 and 32 of natural
lengths, --threads threads. Printed is the median of the paired ratios, their time over ours, for the faster of theirs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
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


def peers(model: Any, sample: dict[str, torch.Tensor], folder: Path, threads: int) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """onnxruntime's forms of the model, exported where they are not yet."""
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    plain = folder / "model.onnx"
    if not plain.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        axes = {name: {0: "batch", 1: "length"} for name in (*INPUTS, "hidden")}
        torch.onnx.export(Hidden(), tuple(sample[n] for n in INPUTS), str(plain), input_names=list(INPUTS), output_names=["hidden"], dynamic_axes=axes,
                          opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    found = {}
    for name, kind in (("int8", QuantType.QInt8), ("uint8", QuantType.QUInt8)):
        file = folder / f"model-{name}.onnx"
        if not file.is_file():
            quantize_dynamic(str(plain), str(file), weight_type=kind)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        found[f"onnxruntime {onnxruntime.__version__} {name}"] = lambda batch, s=session: s.run(None, {n: batch[n].numpy() for n in INPUTS})
    return found


def timed(run: Callable[[dict[str, Any]], Any], batch: dict[str, Any]) -> float:
    began = time.perf_counter()
    run(batch)
    return time.perf_counter() - began


def speed(ours: Any, theirs: dict[str, Callable[[dict[str, Any]], Any]], data: list[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Median of the paired ratios with each of theirs, and the least time of each."""
    def mine(batch: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return ours(**batch)

    runs = {"octavo": mine, **theirs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        timed(run, data[0])
    for i in range(pairs):
        order = list(runs) if i % 2 else list(runs)[::-1]
        for name in order:
            times[name].append(timed(runs[name], data[i % len(data)]))
    ratios = {name: statistics.median(b / a for a, b in zip(times["octavo"], times[name])) for name in theirs}
    return {"ratio": min(ratios.values()), "ratios": ratios, "least_ms": {name: 1e3 * min(t) for name, t in times.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--calibrate-on", type=int, default=128)
    parser.add_argument("--scheme", nargs="+", default=["W8A8", "W8A8tsz"])
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
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
    truth = embeddings(model, data)
    report: dict[str, Any] = {"sentences": len(lines), "quality": {}, "speed": {}}
    for scheme in given.scheme:
        quantized = modules.quantize(model, scheme, data=known)
        report["quality"][scheme] = agreement(truth, embeddings(quantized, data))
        if given.onnx:
            theirs = peers(AutoModel.from_pretrained(given.model, dtype=torch.float32, attn_implementation="eager").eval(), known[0], given.onnx, given.threads)
            for size, pairs in ((1, given.pairs), (32, max(3, given.pairs // 4))):
                report["speed"].setdefault(scheme, {})[str(size)] = speed(quantized, theirs, batches(tokenizer, lines, size)[:20], pairs)
    if given.json:
        print(json.dumps(report))
        return
    for scheme, found in report["quality"].items():
        print(f"{scheme}: cosine {found['cosine']:.5f} (lowest {found['lowest_cosine']:.4f}), Spearman {found['spearman']:.5f}, {len(lines)} sentences")
        for size, result in report["speed"].get(scheme, {}).items():
            least = ", ".join(f"{name} {ms:.2f} ms" for name, ms in result["least_ms"].items())
            print(f"  batch {size}: {result['ratio']:.2f} times the speed of the fastest peer; least times: {least}")


if __name__ == "__main__":
    main()
