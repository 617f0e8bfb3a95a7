"""Small files of every kind, written by the formats' own libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.numpy import save_file

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, HEAD, VOCAB = 2, 256, 512, 2, 1, 128, 40  # transformers gives every qwen3 GGUF heads of 128
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 6, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
          "tie_word_embeddings": True}


def make_folder(path: Path, shared_data: Path) -> Path:
    """A Llama of one layer, hidden size 8, as a Hugging Face folder."""
    path.mkdir()
    rng = np.random.default_rng(0)
    at = "model.layers.0"
    shapes = {"model.embed_tokens.weight": (6, 8), "model.norm.weight": (8,), f"{at}.input_layernorm.weight": (8,),
              f"{at}.post_attention_layernorm.weight": (8,), f"{at}.self_attn.q_proj.weight": (8, 8), f"{at}.self_attn.k_proj.weight": (4, 8),
              f"{at}.self_attn.v_proj.weight": (4, 8), f"{at}.self_attn.o_proj.weight": (8, 8), f"{at}.mlp.gate_proj.weight": (16, 8),
              f"{at}.mlp.up_proj.weight": (16, 8), f"{at}.mlp.down_proj.weight": (8, 16)}
    save_file({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(shared_data / "models" / "stories260k-hf" / name, path / name)
        (path / name).chmod(0o644)
    return path


def gguf_names(architecture: str) -> dict[str, tuple[int, ...]]:
    """GGUF names and shapes of a small model."""
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (HIDDEN,), "attn_q": (q, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN), "attn_output": (HIDDEN, q),
        "ffn_norm": (HIDDEN,), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    if architecture in ("qwen3", "gemma3"):
        layer |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    if architecture == "gemma3":
        layer |= {"post_attention_norm": (HIDDEN,), "post_ffw_norm": (HIDDEN,)}
    names = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    names |= {f"blk.{i}.{part}.weight": shape for i in range(LAYERS) for part, shape in layer.items()}
    if architecture == "qwen2":
        names |= {f"blk.{i}.attn_{part}.bias": (rows,) for i in range(LAYERS) for part, rows in (("q", q), ("k", kv), ("v", kv))}
    return names


def write_gguf(path: Path, architecture: str, kind: str = "F32", tokenizer: str | None = "gpt2", extra: dict[str, np.ndarray] | None = None,
               split: int = 0, **metadata: Any) -> Path:
    """A small random model; matrices of type `kind`. split: most tensors of a file, 0 for one file."""
    rng = np.random.default_rng(1)
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(VOCAB)
    if architecture == "gemma3":
        writer.add_sliding_window(16)
    for key, value in metadata.items():
        name = key.replace("__", ".")
        add = writer.add_string if isinstance(value, str) else writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(name, value)
    if tokenizer is not None:
        add_vocabulary(writer, tokenizer)
    qtype = GGMLQuantizationType[kind]
    for name, shape in gguf_names(architecture).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 2 and kind != "F32":
            writer.add_tensor(name, _blocks(values, qtype, rng), raw_dtype=qtype)
        else:
            writer.add_tensor(name, values)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(values: np.ndarray, qtype: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """Rows of blocks; random ones, with finite scales, of types that the package only reads."""
    try:
        return quants.quantize(values, qtype)
    except NotImplementedError:
        size, count = quants.quant_shape_to_byte_shape(values.shape, qtype)[-1], len(values)
        return rng.integers(0, 0x38, (count, size), np.uint8)  # no float16 made of such bytes is infinite


def add_vocabulary(writer: GGUFWriter, model: str) -> None:
    writer.add_tokenizer_model(model)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    space = "\N{LOWER ONE EIGHTH BLOCK}" if model == "llama" else "\u0120"
    tokens = ["<unk>", "<s>", "</s>", "<|im_end|>", *letters, space, "th", "the", space + "the", *(f"<extra{i}>" for i in range(6))][:VOCAB]
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, 3, *[1] * 30, *[5] * 6])
    if model == "gpt2":
        writer.add_tokenizer_pre("smollm")
        writer.add_token_merges(["t h", "th e", f"{space} the"])
    else:
        writer.add_token_scores([-float(i) for i in range(VOCAB)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")
