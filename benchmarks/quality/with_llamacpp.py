"""llama.cpp's types, weighed by its importance matrix of the same calibration tokens. Runs in Octavo's environment (with `gguf`).

    python benchmarks/quality/with_llamacpp.py MODEL IDS.npy OUT NAME --bin FOLDER [--rows 128]        FOLDER: of llama-quantize and llama-imatrix

OMP_NUM_THREADS is the number of threads; all cores without it, as for the others.

NAME
    imatrix-TYPE   llama-quantize as it is, embedding and head left in 16 bits. Types with blocks of 256 take only the matrices whose rows are a multiple
                   of it: SmolLM2's (576) and Gemma 3 270M's (640) mostly fall back to types of 4 and 5 bits, so the size says little about the type.
    folded-TYPE    the type's own coding of every matrix of the layers: rows joined until their length is a multiple of 256, the importance of the columns
                   repeated, through ggml_quantize_chunk of the same library. What the type is worth, at exactly its bits per weight. Written
                   dequantized, as float32.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import record

TYPES = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL")
THREADS = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
FOLDED = ("Q4_0", "Q4_K", "Q3_K", "Q2_K", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS", "IQ4_NL")
PARTS = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def base(options: Any) -> tuple[Path, Path]:
    """(the model as a bfloat16 GGUF, its importance matrix), made once."""
    from octavo.conversion import convert
    from octavo.loading import load

    folder = options.out / "llamacpp-base"
    folder.mkdir(parents=True, exist_ok=True)
    plain, importance, text = folder / "bf16.gguf", folder / f"importance-{options.rows}.gguf", folder / f"text-{options.rows}.txt"
    if not plain.exists():
        convert(options.model, plain, to="gguf:BF16")
    if not importance.exists():
        tokenizer = load(options.model, quantization="16bit", use_cache=False).text
        ids = record.calibration(options)
        text.write_text(tokenizer.decode([int(i) for i in ids.ravel() if i != tokenizer.bos_id], skip_special=False), encoding="utf-8")
        run(options.bin / "llama-imatrix", "-m", plain, "-f", text, "-o", importance, "-c", ids.shape[1], "--chunks", len(ids), "--no-ppl", "-t",
            THREADS, "-ngl", 0)
    return plain, importance


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")


def importances(path: Path) -> dict[str, np.ndarray]:
    """GGUF tensor name -> mean square of each input: float32 [in]."""
    import gguf

    found = {tensor.name: np.asarray(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    return {name.removesuffix(".in_sum2"): (sums.reshape(-1) / found[name.removesuffix("in_sum2") + "counts"].reshape(-1)[0]).astype(np.float32)
            for name, sums in found.items() if name.endswith(".in_sum2")}


def folded(weight: np.ndarray, importance: np.ndarray, kind: str, library: ctypes.CDLL) -> tuple[np.ndarray, int]:
    """(the weight as the type codes it: float32 [out, in], bytes)."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[number]
    rows, columns = weight.shape
    join = block // math.gcd(block, columns)
    if rows % join:
        raise SystemExit(f"{rows} rows of {columns} do not fold into blocks of {block}")
    source = np.ascontiguousarray(weight, np.float32).reshape(rows // join, join * columns)
    weighed = np.ascontiguousarray(np.tile(importance, join))
    out = np.empty((source.shape[0], gguf.quant_shape_to_byte_shape((source.shape[1],), number)[0]), np.uint8)
    quantize = library.ggml_quantize_chunk
    quantize.restype, pointer = ctypes.c_size_t, ctypes.c_void_p
    quantize.argtypes = [ctypes.c_int, pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer]
    quantize(int(number), source.ctypes.data, out.ctypes.data, 0, *source.shape, weighed.ctypes.data)
    return gguf.quants.dequantize(out, number).reshape(rows, columns).astype(np.float32), out.nbytes


def fold_model(options: Any, kind: str, importance: Path, folder: Path) -> float:
    """Bits per weight of the coded matrices."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    library = ctypes.CDLL(str(next(options.bin.glob("libggml-base.so"))))
    weights, state, size, count = importances(importance), {}, 0, 0
    with safe_open(options.model / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (safetensors' handle is no dict)
            tensor = file.get_tensor(name).float()
            found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
            if found and found[2] in PARTS:
                coded, taken = folded(tensor.numpy(), weights[f"blk.{found[1]}.{PARTS[found[2]]}.weight"], kind, library)
                tensor, size, count = torch.from_numpy(coded), size + taken, count + coded.size
            state[name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for path in options.model.glob("*"):
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return 8 * size / count


def version_of(tools: Path) -> str:
    said = subprocess.run([tools / "llama-imatrix", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: (.+)", said.stdout + said.stderr)
    return found[1] if found else "unknown"


def main() -> None:
    options = record.arguments(__doc__, [f"imatrix-{kind.lower()}" for kind in TYPES] + [f"folded-{kind.lower()}" for kind in FOLDED])
    method, _, kind = options.name.rpartition("-")

    def quantize(folder: Path) -> dict[str, Any]:
        plain, importance = base(options)
        if method == "folded":
            return {"bits": fold_model(options, kind.upper(), importance, folder), "version": version_of(options.bin)}
        run(options.bin / "llama-quantize", "--imatrix", importance, "--token-embedding-type", "bf16", "--output-tensor-type", "bf16", plain,
            folder / "model.gguf", kind.upper(), THREADS)
        return {"version": version_of(options.bin)}

    record.run(options, "llamacpp", quantize)


if __name__ == "__main__":
    main()
