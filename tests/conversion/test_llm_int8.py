"""LLM.int8() from its name to logits: what bitsandbytes' config says of it, the stored codes in that arithmetic, native against reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from octavo.cache import Step
from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import UsageError
from octavo.loading import LoadedModel, load

Q = "model.layers.0.self_attn.q_proj.weight"


def logits_of(loaded: LoadedModel, count: int = 40) -> np.ndarray:
    tokens = (np.arange(count, dtype=np.int32) * 37) % loaded.vocab_size
    at = np.arange(count, dtype=np.int32)
    step = Step(tokens, at, at.copy(), np.array([0, count], np.int32), np.array([count], np.int32), np.arange(2, dtype=np.int32)[None], at.copy())
    return np.array(loaded.forward(step, loaded.new_pool(2)), np.float64)


@pytest.mark.parametrize(("scheme", "threshold"), [("LLM.int8()", 6.0), ("W8A8o2.5", 2.5), ("W8A8", 0.0), ("W8A16", 6.0)])
def test_bitsandbytes_is_told_the_threshold(tiny_model: Path, tmp_path: Path, scheme: str, threshold: float) -> None:
    convert(tiny_model, tmp_path / "out", to="bitsandbytes:int8", quantization=scheme)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == threshold
    checkpoint = open_checkpoint(tmp_path / "out")
    assert any(f"--quantization W8A8o{threshold:g} " in note for note in checkpoint.notes) == (threshold > 0)
    assert (checkpoint.tensors[Q].activation is None) == (threshold > 0)


def test_a_format_without_thresholds_refuses(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"inputs from 6 on stay unrounded .*W8A8 or W8A16"):
        convert(tiny_model, tmp_path / "out", to="compressed-tensors", quantization="LLM.int8()")


@pytest.mark.usefixtures("float_lanes")
def test_stored_codes_run_in_the_arithmetic_that_is_asked_for(tiny_model: Path, tmp_path: Path, cache_dir: Path) -> None:
    """A threshold at which this model's inputs have outliers: closer to 16-bit inputs than plain W8A8, native as the reference, the codes as stored."""
    convert(tiny_model, tmp_path / "out", to="bitsandbytes:int8", quantization="LLM.int8()")
    stored, split, plain = (logits_of(load(tmp_path / "out", quantization=how, use_cache=False)) for how in (None, "W8A8o1", "W8A8"))
    reference = logits_of(load(tmp_path / "out", quantization="W8A8o1", backend="reference", use_cache=False))
    same = logits_of(load(tiny_model, quantization="W8A8o1", use_cache=False))
    assert np.abs(split - stored).mean() < 0.8 * np.abs(plain - stored).mean()
    assert np.abs(split - reference).mean() < 0.1 * np.abs(split - plain).mean()
    assert np.abs(split - same).mean() < 0.1 * np.abs(split - plain).mean()  # bitsandbytes keeps the embedding in 16 bits
