"""Folders of integer checkpoints, packed bit by bit as the formats are described, without any of Octavo's code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from octavo.checkpoints import open_checkpoint
from octavo.errors import CheckpointError

AT = "model.layers.0.self_attn.q_proj"


def write(path: Path, tensors: dict[str, np.ndarray], quantization: dict[str, Any], **config: Any) -> Path:
    """A folder with these tensors; `quantization` is its quantization_config."""
    path.mkdir(exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "tiny", "quantization_config": quantization, **config}))
    return path


def word_rows(values: np.ndarray, bits: int, word: int = 32) -> np.ndarray:
    """[rows, n] packed along n, low bits first, with Python's integers."""
    found = []
    for row in values.tolist():
        number = sum(int(v) << (i * bits) for i, v in enumerate(row))
        count = -(-len(row) * bits // word)
        found.append([(number >> (i * word)) & ((1 << word) - 1) for i in range(count)])
    return np.array(found, f"u{word // 8}").view(f"i{word // 8}")


def gptq_tensors(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int, index: np.ndarray | None = None, minus: int = 1,
                 word: int = 32) -> dict[str, np.ndarray]:
    """codes [out, in], zeros and scales [out, groups]; `minus` 1 is v1 (each field wraps)."""
    stored = (zeros.astype(np.int64) - minus) % (1 << bits)
    found = {"qweight": word_rows(codes, bits, word).T, "qzeros": word_rows(stored.T, bits, word), "scales": scales.T.astype(np.float16)}
    if index is not None:
        found["g_idx"] = index.astype(np.int32)
    return {f"{AT}.{part}": array for part, array in found.items()}


def refused(path: Path, *parts: str) -> CheckpointError:
    """Opening and reading everything fails with one line that names all of `parts`."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = open_checkpoint(path)
        for name in checkpoint.tensors:
            checkpoint.read(name)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text
    return caught.value
