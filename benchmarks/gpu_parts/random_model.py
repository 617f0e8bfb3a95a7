"""A model of a given shape with random weights, which are made where they are read: nothing lies on a disk.

Weights are pieces of one ring of normal numbers with a standard deviation of 0.02 in bfloat16, each beginning at a place of its own; gains are
1. After RMS norms activations keep their size over all layers, and no two rows of a matrix are alike.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from octavo import formats
from octavo.checkpoints import TensorInfo
from octavo.layers import declare
from octavo.loading import _origin
from octavo.models import read_model
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

RING = (1 << 24) + 61  # numbers; odd, so that rows do not begin at the same places again and again
SPREAD = 0.02

# Meta-Llama-3-8B's config.json: https://huggingface.co/meta-llama/Meta-Llama-3-8B
LLAMA3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": 128001,
}
TOY = LLAMA3_8B | {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                   "vocab_size": 500, "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 1}
TINY = TOY | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 60}


class RandomCheckpoint:
    """Implements checkpoints.Checkpoint for a Hugging Face config."""

    codec = "random"
    cache = None
    notes: Sequence[str] = ()

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.path, self.config = Path("random"), dict(config)
        rng = np.random.default_rng(0)
        self.ring = np.asarray(formats.get("bf16").encode(rng.standard_normal(RING, np.float32) * np.float32(SPREAD)))
        wanted = declare(read_model(self.config).describe).wanted
        self.tensors = {name: TensorInfo(name, want.shape, TensorSpec("bf16"), 2 * int(np.prod(want.shape)), self.path, "BF16")
                        for name, want in wanted.items()}

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """Rows of a weight, the same numbers at every reading; see Checkpoint.read."""
        shape = self.tensors[name].shape
        if len(shape) == 1:
            return QTensor(np.ones(shape, np.float32), None, TensorSpec("fp32"), shape)
        first, last = (0, shape[0]) if rows is None else (rows.start, rows.stop)
        size, start = (last - first) * shape[1], (zlib.crc32(name.encode()) + first * shape[1]) % RING
        numbers = np.concatenate([self.ring[start:], np.resize(self.ring, max(0, size - (RING - start)))])[:size] if start + size > RING else \
            self.ring[start : start + size]
        return QTensor(numbers.reshape(last - first, shape[1]), None, TensorSpec("bf16"), (last - first, shape[1]))

    def tokenizer_files(self) -> dict[str, Any]:
        """A word for every token: prompts are given as tokens."""
        from tokenizers import Tokenizer, models

        words = {f"t{i}": i for i in range(int(self.config["vocab_size"]))}
        return {"tokenizer": Tokenizer(models.WordLevel(words, "t0")), "config": {}, "generation": {}}

    def content_key(self, cache_dir: Path | None = None) -> str:
        return "random"

    def release(self, name: str) -> None:
        pass


@contextmanager
def in_place_of_files(config: Mapping[str, Any]) -> Any:
    """Within it `octavo.loading.load` finds this model, whatever it is told to open."""
    usual, checkpoint = _origin.open_checkpoint, RandomCheckpoint(config)
    _origin.open_checkpoint = lambda *_args, **_more: checkpoint  # type: ignore[assignment,return-value]
    try:
        yield checkpoint
    finally:
        _origin.open_checkpoint = usual
