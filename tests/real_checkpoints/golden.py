"""What a maker's own dequantization makes of its checkpoint: golden.npz beside the model files.

The dequantized model is the unquantized architecture in float32 (transformers' Llama) with every weight as the maker's library dequantizes it, scales
widened to float32 before the library multiplies (they are exact there; a product rounded to bfloat16 would say more about bfloat16 than about the
checkpoint). Activations are not quantized. Runs in the makers' environments: torch, transformers and NumPy only.

golden.npz holds
    maker      text: library and version
    prompt     int64 [n] token ids of PROMPT
    logits     float32 [n, vocabulary] of the prompt
    greedy     int64 [GREEDY] the tokens that follow, greedily
    weight:X   float32, the first ROWS rows of the dequantized weight X, for the names of WATCHED that are quantized
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

PROMPT = ("A checkpoint holds the weights of a model as numbers of few bits, with a scale for each small group of them. "
          "Whoever reads it has to know")
GREEDY = 24
ROWS = 1024
WATCHED = ("model.layers.0.self_attn.q_proj.weight", "model.layers.3.self_attn.o_proj.weight", "model.layers.17.mlp.down_proj.weight",
           "model.embed_tokens.weight")


def write_golden(folder: Path, maker: str, weights: Iterable[tuple[str, Any]], source: Path, quantized_at_least: int = 200) -> None:
    """`weights`: Hugging Face name and float32 tensor of all that the checkpoint quantizes; the rest is read from its safetensors files.

    A name that the model lacks, a missing weight, or fewer than `quantized_at_least` dequantized ones (30 layers have 210 linears) is an error: a golden
    file must not bless a half-read checkpoint.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(source)
    config.dtype = torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    wanted = {name: value.shape for name, value in model.state_dict().items() if name != "lm_head.weight"}
    state = {name: value.detach().to(torch.float32).contiguous() for name, value in weights}
    if len(state) < quantized_at_least:
        raise SystemExit(f"{folder}: only {len(state)} weights were dequantized")
    watched = {f"weight:{name}": state[name][:ROWS].numpy() for name in WATCHED if name in state}
    state |= {name: value for name, value in plain_tensors(folder) if name in wanted and name not in state}
    state.pop("lm_head.weight", None)  # tied
    bad = {name for name in wanted.keys() | state.keys() if name not in state or wanted.get(name) != state[name].shape}
    if bad:
        raise SystemExit(f"{folder}: missing, extra or misshapen: {sorted(bad)[:5]}")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    model.tie_weights()
    model.eval()
    prompt = AutoTokenizer.from_pretrained(source)(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model(prompt, use_cache=True)
        logits, greedy = out.logits[0], []
        while len(greedy) < GREEDY:  # not generate(), which would stop at, or step around, the end of the text
            greedy.append(int(out.logits[0, -1].argmax()))
            out = model(torch.tensor([greedy[-1:]]), past_key_values=out.past_key_values, use_cache=True)
    part = folder / "golden.part.npz"
    np.savez(part, maker=np.array(maker), prompt=prompt[0].numpy(), logits=logits.numpy(), greedy=np.array(greedy), **watched)
    part.rename(folder / "golden.npz")
    print(f"{folder.name}: {maker}; {len(list(folder.iterdir()))} files, largest logit {float(logits.abs().max()):.2f}", flush=True)


def plain_tensors(folder: Path) -> Iterable[tuple[str, Any]]:
    """Name and tensor (float32) of the unquantized floats in a folder's safetensors files."""
    import torch

    for name, value in stored_tensors(folder).items():
        if value.dtype in (torch.float16, torch.bfloat16, torch.float32):
            yield name, value.to(torch.float32)


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder's safetensors files, as stored."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safetensors' handle is no dict)
    return found


def modules(tensors: dict[str, Any], having: str) -> dict[str, dict[str, Any]]:
    """The tensors grouped by module, of the modules that have one called `having`: {module: {local name: tensor}}."""
    names = [name.removesuffix("." + having) for name in tensors if name.endswith("." + having)]
    groups: dict[str, dict[str, Any]] = {name: {} for name in names}
    for name, value in tensors.items():
        module, _, local = name.rpartition(".")
        if module in groups:
            groups[module][local] = value
    return groups


def quantization_config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def texts(count: int) -> list[str]:
    """Plain English for calibration: how well a checkpoint answers is not the question here, so the project's own pages do."""
    root = Path(__file__).resolve().parents[2]
    words = " ".join((root / name).read_text() for name in ("README.md", "DESIGN.md")).split()
    return [" ".join(words[start : start + 220]) for start in range(0, 220 * count, 220)][:count]
