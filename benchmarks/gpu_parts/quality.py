"""A real small model on GPU and CPU, on the same text, through what `octavo evaluate` runs: the GPU's answers are the model, the CPU's the original."""

from __future__ import annotations

from typing import Any

from octavo.evaluate.measure import evaluate
from octavo.loading import LoadedModel, load
from octavo.quality.texts import read_text

from .machine import has_native

# Where the CPU's kernels multiply other numbers than the GPU's (FP8 activations), the reference backend takes their place
NATIVE = ("16bit", "W8A8", "W4A16")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Perplexities, their paired ratio, KL and agreement, as `Comparison.to_json` gives them."""
    scheme, path = case["scheme"], case["model"]
    against = "native" if scheme in NATIVE and has_native() else "reference"

    def on(backend: str) -> LoadedModel:
        return load(path, quantization=scheme, backend=backend, use_cache=False, max_model_len=case["context"])

    found = evaluate(lambda: on("triton"), lambda: on(against), read_text(case["text"]), context=case["context"], windows=case["windows"]).to_json()
    kept = ("perplexity", "original_perplexity", "perplexity_ratio", "kl", "top1_agreement", "broken_tokens", "tokens", "text")
    return {"scheme": scheme, "against": against} | {key: found[key] for key in kept if key in found} | {"model": found["model"]}
