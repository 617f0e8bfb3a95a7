"""The loop against transformers: same windows, same text, same digits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.loading import load
from octavo.quality import perplexity, windows_of


def transformers_perplexity(model: Any, ids: list[int], context: int, windows: int) -> float:
    """The usual loop: the mean of the model's own loss over windows without overlap."""
    losses = []
    for start in range(0, windows * context, context):
        window = torch.tensor([ids[start : start + context]])
        with torch.no_grad():
            losses.append(float(model(window, labels=window).loss))
    return math.exp(float(np.mean(losses)))


def test_tiny_llama_in_float64_equals_transformers(tiny_model: Path, shared_data: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    text = (shared_data / "text" / "tinyshakespeare.txt").read_text()[:8000]
    ours = load(str(tiny_model), quantization="32bit", kv_cache=None, backend="reference", use_cache=False)
    cuts = windows_of(ours, text, context=128, windows=4)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64).eval()
    result = perplexity(ours, text, context=128, windows=4)
    if (cuts.tokens[:, 0] == cuts.tokens[0, 0]).all():  # every window begins with the tokenizer's BOS, as documented
        ids = cuts.tokens.reshape(-1).tolist()
    else:
        ids = ours.text.encode(text, special=False)
    assert result.value == pytest.approx(transformers_perplexity(theirs, ids, 128, 4), rel=1e-5)


def test_smollm2_equals_transformers_to_four_digits(smollm2_path: Path, shared_data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    text = (shared_data / "text" / "wikitext2-eval.txt").read_text()[:20_000]
    where = {"pretrained_model_name_or_path": str(smollm2_path.parent), "gguf_file": smollm2_path.name}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)).eval()
    ids = AutoTokenizer.from_pretrained(**where)(text).input_ids
    ours = load(str(smollm2_path), quantization="32bit", kv_cache=None, use_cache=False)
    assert ours.text.encode(text) == ids
    result = perplexity(ours, text, context=1024, windows=2)
    assert result.tokens == 2 * 1023
    assert result.value == pytest.approx(transformers_perplexity(theirs, ids, 1024, 2), rel=1e-4)
