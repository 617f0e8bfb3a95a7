"""Tiny random models of every family, and a driver that runs them as the engine does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from octavo.cache import PAGE, Step
from octavo.loading import LoadedModel

VOCABULARY = 97
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single words w0 w1 ..., since loading wants one."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2"}))


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a size that lets every part of the model matter; gains around what leaves a vector as it is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                gain = 1.0 if "norm" in name and "Gemma" not in type(model).__name__ else 0.0
                parameter.copy_(gain + 0.3 * noise)


def build(folder: Path, config: transformers.PretrainedConfig, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model of a config with random weights, saved to `folder`."""
    kind = transformers.AutoModelForImageTextToText if config.model_type == "gemma3" else transformers.AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    randomize(model)
    model = model.to(dtype)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def expected_logits(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """float32 [len(tokens), vocab] by transformers."""
    with torch.no_grad():
        return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy()


class Driver:
    """Feeds tokens of several sequences to a model, chunk by chunk, on pages that are scattered over the pool."""

    def __init__(self, loaded: LoadedModel, sequences: int = 1, pages_each: int = 8) -> None:
        self.loaded = loaded
        self.pool = loaded.new_pool(sequences * pages_each)
        self.tables = np.random.default_rng(3).permutation(sequences * pages_each).astype(np.int32).reshape(sequences, pages_each)
        self.lengths = [0] * sequences

    def feed(self, chunks: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Sequence -> its next tokens; returns the logits of each of these tokens."""
        starts = np.cumsum([0, *(len(tokens) for tokens in chunks.values())]).astype(np.int32)
        positions, slots = [], []
        for s, tokens in chunks.items():
            at = np.arange(self.lengths[s], self.lengths[s] + len(tokens), dtype=np.int32)
            positions.append(at)
            slots.append(self.tables[s, at // PAGE] * PAGE + at % PAGE)
            self.lengths[s] += len(tokens)
        step = Step(
            tokens=np.concatenate(list(chunks.values())).astype(np.int32), positions=np.concatenate(positions),
            slots=np.concatenate(slots).astype(np.int32), starts=starts, lengths=np.array([self.lengths[s] for s in chunks], np.int32),
            tables=np.ascontiguousarray(self.tables[list(chunks)]), select=np.arange(starts[-1], dtype=np.int32),
        )
        logits = self.loaded.forward(step, self.pool)
        return {s: logits[starts[i] : starts[i + 1]].copy() for i, s in enumerate(chunks)}


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).astype(np.int32)
