"""A small Llama with everything around it that a real one has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import save_file

HIDDEN, INNER, VOCAB, LAYERS = 256, 640, 512, 2


def make(path: Path, tokenizer: Path, *, layers: int = LAYERS, hidden: int = HIDDEN, inner: int = INNER, tied: bool = False, seed: int = 0) -> Path:
    """A folder of bfloat16 weights. `tokenizer`: a folder to take the tokenizer's files from."""
    import torch

    path.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    kv = hidden // 2
    shapes = {"model.embed_tokens.weight": (VOCAB, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.q_proj.weight": (hidden, hidden), f"{at}.self_attn.k_proj.weight": (kv, hidden),
                   f"{at}.self_attn.v_proj.weight": (kv, hidden), f"{at}.self_attn.o_proj.weight": (hidden, hidden),
                   f"{at}.mlp.gate_proj.weight": (inner, hidden), f"{at}.mlp.up_proj.weight": (inner, hidden), f"{at}.mlp.down_proj.weight": (hidden, inner),
                   f"{at}.input_layernorm.weight": (hidden,), f"{at}.post_attention_layernorm.weight": (hidden,)}
    tensors = {name: torch.randn(shape, generator=generator).mul(0.05 if len(shape) > 1 else 1).to(torch.bfloat16) for name, shape in shapes.items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() if tied else torch.randn((VOCAB, hidden), generator=generator).to(torch.bfloat16)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
              "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(tokenizer / name, path / name)
    (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (path / "LICENSE").write_text("Apache License\n")
    (path / "README.md").write_text("# A model\n")
    return path


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder, as torch's own reader gives it (floats as float32)."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            for name in reader.keys():  # noqa: SIM118  # no mapping
                tensor = reader.get_tensor(name)
                found[name] = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    return found


def numbers(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder as float32, as Octavo reads it."""
    from octavo.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.read(name).dequantize() for name, info in checkpoint.tensors.items() if info.spec is not None}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; of the manifest, all but the time."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if "octavo-manifest.json" in found:
        manifest = json.loads(found["octavo-manifest.json"])
        manifest.pop("created")
        found["octavo-manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return found
