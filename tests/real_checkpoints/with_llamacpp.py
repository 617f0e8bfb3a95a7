"""llama.cpp's own llama-quantize: one GGUF file per type, dequantized by llama.cpp's Python package `gguf` as transformers reads it.

    python tests/real_checkpoints/with_llamacpp.py SOURCE OUT BIN [TYPE ...]        BIN: folder of llama-quantize and llama-imatrix

The 16-bit file is written by this script with gguf's writer: metadata and tokenizer stay those of the demo model's own file.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS",
         "IQ3_S", "IQ3_M", "IQ3_XXS", "IQ2_XS", "IQ2_XXS", "IQ2_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4_MOE", "BF16")
PARTS = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}
HEADS = {"attn_q": 9, "attn_k": 3}


def hugging_face_name(name: str) -> str:
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if found:
        return f"model.layers.{found[1]}.{PARTS[found[2]]}.weight"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}[name]


def turned(name: str, value: np.ndarray, *, to_gguf: bool) -> np.ndarray:
    """llama.cpp rotates neighbouring rows of q and k, Hugging Face the two halves of each head."""
    heads = HEADS.get(name.split(".")[-2])
    if heads is None:
        return value
    rows = len(value)
    split = (heads, 2, rows // heads // 2) if to_gguf else (heads, rows // heads // 2, 2)
    return value.reshape(*split, -1).swapaxes(1, 2).reshape(value.shape)


def write_f16(source: Path, target: Path) -> None:
    """The source as a GGUF file in bfloat16, with metadata and tokenizer of the demo model's GGUF."""
    import gguf
    from source import demo_model

    stored = dict(golden.plain_tensors(source))
    old = gguf.GGUFReader(demo_model())
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "llama")
    for field in old.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind = field.types[0]
        writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for tensor in old.tensors:
        value = turned(tensor.name, stored[hugging_face_name(tensor.name)].numpy(), to_gguf=True)
        if value.ndim == 1:
            writer.add_tensor(tensor.name, value)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(value, gguf.GGMLQuantizationType.BF16), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)


def dequantized(file: Path) -> Iterator[tuple[str, Any]]:
    import gguf
    import torch

    for tensor in gguf.GGUFReader(file).tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(int(n) for n in reversed(tensor.shape)))
        yield hugging_face_name(tensor.name), torch.from_numpy(np.array(turned(tensor.name, value, to_gguf=False), np.float32))


def main(source: Path, out: Path, tools: Path, only: list[str]) -> None:
    base = out / "llamacpp-source"
    base.mkdir(exist_ok=True)
    f16, importance = base / "bf16.gguf", base / "importance.gguf"
    if not f16.exists():
        write_f16(source, f16)
    if not importance.exists():
        (base / "text.txt").write_text("\n".join(golden.texts(30)))
        run(tools / "llama-imatrix", "-m", f16, "-f", base / "text.txt", "-o", importance, "-c", "256", "--chunks", "8", "-t", "2", "-ngl", "0")
    for kind in only or TYPES:
        folder = out / f"llamacpp-{kind.lower()}"
        folder.mkdir(exist_ok=True)
        file = folder / f"SmolLM2-135M-Instruct.{kind}.gguf"
        if not file.exists():
            weighed = ("--imatrix", importance) if kind.startswith(("IQ1", "IQ2", "IQ3")) else ()
            part = file.with_suffix(".part")
            run(tools / "llama-quantize", *weighed, f16, part, kind, "2")
            part.rename(file)
        if not (folder / "golden.npz").exists():
            golden.write_golden(folder, maker(tools), dequantized(file), source)


def maker(tools: Path) -> str:
    said = subprocess.run([tools / "llama-imatrix", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: (.+)", said.stdout + said.stderr)
    return f"llama.cpp {found[1] if found else 'of unknown version'}"


def run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
