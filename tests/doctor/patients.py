"""Small healthy checkpoints of several formats, packed here by hand, and small ways to hurt them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from octavo import formats

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB, GROUP = 128, 256, 3, 4, 4, 64, 32
Tensors = dict[str, np.ndarray]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # column in nibble 0, 1, ...
BF16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


@contextmanager
def sized(hidden: int, inner: int, layers: int) -> Iterator[None]:
    """Inside, models are of this size."""
    global HIDDEN, INNER, LAYERS
    before = HIDDEN, INNER, LAYERS
    HIDDEN, INNER, LAYERS = hidden, inner, layers
    try:
        yield
    finally:
        HIDDEN, INNER, LAYERS = before


def config(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False, "dtype": "bfloat16", "eos_token_id": 2, **changes}


def linears() -> dict[str, tuple[int, int]]:
    shapes = {}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{p}_proj": (HIDDEN, HIDDEN) for p in "qkvo"}
        shapes |= {f"{at}.mlp.gate_proj": (INNER, HIDDEN), f"{at}.mlp.up_proj": (INNER, HIDDEN), f"{at}.mlp.down_proj": (HIDDEN, INNER)}
    return shapes


def weights(seed: int = 0) -> Tensors:
    """float32 linears."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * 0.05).astype(np.float32) for name, shape in linears().items()}


def others() -> Tensors:
    """Embedding, head and norms, bfloat16."""
    rng = np.random.default_rng(9)
    found = {"model.embed_tokens.weight": rng.standard_normal((VOCAB, HIDDEN)), "lm_head.weight": rng.standard_normal((VOCAB, HIDDEN)),
             "model.norm.weight": 1 + 0.1 * rng.standard_normal(HIDDEN)}
    for layer in range(LAYERS):
        for part in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{part}.weight"] = 1 + 0.1 * rng.standard_normal(HIDDEN)
    return {name: array.astype(BF16) for name, array in found.items()}


def write(path: Path, tensors: Tensors, quantization: dict[str, Any] | None = None, **changes: Any) -> Path:
    path.mkdir(parents=True)
    described = config(**changes) | ({"quantization_config": quantization} if quantization else {})
    (path / "config.json").write_text(json.dumps(described))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path / "model.safetensors")
    vocabulary = {f"w{i}": i for i in range(VOCAB)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2", "chat_template": "{{ messages[0]['content'] }}"}))
    return path


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """[rows, n] of small numbers -> int32 [rows, n * bits / 32], low bits first."""
    spread = ((values[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1).reshape(len(values), -1)
    spread = np.pad(spread, ((0, 0), (0, -spread.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(spread, axis=1, bitorder="little")).view("<i4")


def grouped(weight: np.ndarray, bits: int, sym: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes from 0 [out, in], zeros [out, groups], scales float16 [out, groups]) by round to nearest."""
    cells = weight.reshape(len(weight), -1, GROUP)
    top = (1 << bits) - 1
    if sym:
        scales = np.abs(cells).max(axis=2) * 2 / top
        zeros = np.full(scales.shape, 1 << (bits - 1))
    else:
        low, high = np.minimum(cells.min(axis=2), 0), np.maximum(cells.max(axis=2), 0)
        scales = (high - low) / top
        zeros = np.clip(np.round(-low / scales), 0, top).astype(int)
    scales = scales.astype(np.float16)
    codes = np.clip(np.round(cells / scales[..., None].astype(np.float32)) + zeros[..., None], 0, top).astype(np.uint8)
    return codes.reshape(weight.shape), zeros, scales


def plain(path: Path, **changes: Any) -> Path:
    return write(path, {f"{name}.weight": w.astype(BF16) for name, w in weights().items()} | others(), **changes)


def gptq(path: Path, bits: int = 4, sym: bool = True, stored: str = "gptq", said: str = "gptq", **changes: Any) -> Path:
    """`stored` is the convention of the zero points, `said` what the config calls it."""
    tensors = others()
    for name, weight in weights().items():
        codes, zeros, scales = grouped(weight, bits, sym)
        kept = (zeros - (stored == "gptq")) % (1 << bits)
        tensors |= {f"{name}.qweight": words(codes, bits).T, f"{name}.qzeros": words(kept.T, bits), f"{name}.scales": scales.T,
                    f"{name}.g_idx": np.arange(weight.shape[1], dtype=np.int32) // GROUP}
    said_of = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": sym, "desc_act": False, "checkpoint_format": said}
    return write(path, tensors, said_of | changes)


def awq(path: Path, order: list[int] = AWQ_ORDER, zero_order: list[int] = AWQ_ORDER) -> Path:
    def packed(values: np.ndarray, nibbles: list[int]) -> np.ndarray:
        return words(values.reshape(len(values), -1, 8)[:, :, nibbles].reshape(values.shape), 4)

    tensors = others()
    for name, weight in weights().items():
        codes, zeros, scales = grouped(weight, 4, False)
        tensors |= {f"{name}.qweight": packed(codes.T, order), f"{name}.qzeros": packed(zeros.T, zero_order), f"{name}.scales": scales.T}
    return write(path, tensors, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"})


def ct_config(kind: str, weights_said: dict[str, Any], inputs: dict[str, Any] | None = None, cache: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": cache,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights_said, "input_activations": inputs, "output_activations": None}}}


def pack_quantized(path: Path, bits: int = 4, old: bool = False) -> Path:
    tensors = others()
    for name, weight in weights().items():
        codes, _, scales = grouped(weight, bits, True)
        per_word = 32 // bits
        if old:
            padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_word))).reshape(len(codes), -1, per_word).astype(np.uint32)
            kept = (padded << (np.arange(per_word, dtype=np.uint32) * np.uint32(bits))).sum(axis=2, dtype=np.uint32).view(np.int32)
        else:
            kept = words(codes, bits)
        tensors |= {f"{name}.weight_packed": kept, f"{name}.weight_scale": scales.astype(BF16), f"{name}.weight_shape": np.array(weight.shape, np.int64)}
    return write(path, tensors, ct_config("pack-quantized", {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP,
                                                             "dynamic": False}))


def fp8_static(path: Path, cache: bool = True, names: str = "self_attn.{}_scale", value: float = 0.05) -> Path:
    """compressed-tensors, one scale per tensor, static activations, scales of an FP8 cache."""
    tensors = others()
    for name, weight in weights().items():
        scale = np.abs(weight).max() / 448
        tensors |= {f"{name}.weight": (weight / scale).astype(E4M3), f"{name}.weight_scale": np.array([scale], np.float32),
                    f"{name}.input_scale": np.array([0.02], np.float32)}
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{names.format(part)}": np.array([value], np.float32) for part in "kv"}
    number = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    return write(path, tensors, ct_config("float-quantized", number, number, number if cache else None))


def fp8_blocks(path: Path) -> Path:
    tensors = others()
    for name, weight in weights().items():
        cells = weight.reshape(weight.shape[0] // 64, 64, weight.shape[1] // 64, 64)
        scales = np.abs(cells).max(axis=(1, 3)) / 448
        codes = (cells / scales[:, None, :, None]).reshape(weight.shape).astype(E4M3)
        tensors |= {f"{name}.weight": codes, f"{name}.weight_scale_inv": scales.astype(np.float32)}
    return write(path, tensors, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [64, 64]})


def nf4(path: Path, table: str = "nf4") -> Path:
    tensors = others()
    values = np.asarray(formats.get("nf4").decode(np.arange(16, dtype=np.uint8)))
    shown = np.asarray(formats.get(table).decode(np.arange(16, dtype=np.uint8)), np.float32)
    for name, weight in weights().items():
        cells = weight.reshape(-1, 64)
        absmax = np.abs(cells).max(axis=1).astype(np.float32)
        codes = np.abs(cells[..., None] / absmax[:, None, None] - values).argmin(axis=2).astype(np.uint8).reshape(-1)
        state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}).encode()
        tensors |= {f"{name}.weight": (codes[::2] << 4 | codes[1::2])[:, None], f"{name}.weight.absmax": absmax, f"{name}.weight.quant_map": shown,
                    f"{name}.weight.quant_state.bitsandbytes__nf4": np.frombuffer(state, np.uint8)}
    return write(path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16",
                                 "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": False})


def mixture(path: Path) -> Path:
    """Four experts a layer, of a model_type that is not served here: only what its own files tell can be checked."""
    rng = np.random.default_rng(4)
    tensors = others()
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        tensors |= {f"{at}.self_attn.{p}_proj.weight": rng.standard_normal((HIDDEN, HIDDEN)).astype(BF16) for p in "qkvo"}
        tensors[f"{at}.mlp.gate.weight"] = rng.standard_normal((4, HIDDEN)).astype(BF16)
        for expert in range(4):
            for part, shape in (("gate_proj", (64, HIDDEN)), ("up_proj", (64, HIDDEN)), ("down_proj", (HIDDEN, 64))):
                name = f"{at}.mlp.experts.{expert}.{part}"
                tensors |= {f"{name}.weight": rng.standard_normal(shape).astype(E4M3), f"{name}.weight_scale": np.array([0.01], np.float32),
                            f"{name}.input_scale": np.array([0.01 + 0.001 * expert], np.float32)}
    number = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
    said = ct_config("float-quantized", number, number) | {"ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp[.]gate$"]}
    return write(path, tensors, said, model_type="mixtral", num_local_experts=4)


HEALTHY: dict[str, Callable[[Path], Path]] = {
    "plain": plain, "gptq v1": gptq, "gptq v2": lambda p: gptq(p, stored="gptq_v2", said="gptq_v2"), "gptq 3 bits": lambda p: gptq(p, bits=3),
    "gptq 8 bits": lambda p: gptq(p, bits=8), "gptq asymmetric": lambda p: gptq(p, sym=False), "awq": awq, "pack-quantized": pack_quantized,
    "pack-quantized 3 bits": lambda p: pack_quantized(p, 3), "fp8 static, fp8 cache": fp8_static, "fp8 blocks": fp8_blocks, "nf4": nf4, "mixture": mixture,
}


DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": BF16, "F8_E4M3": E4M3, "I32": np.int32, "I64": np.int64, "U8": np.uint8, "I8": np.int8}


def load(file: Path) -> Tensors:
    """What the safetensors library cannot give as NumPy arrays: small floats too."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[first:last], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found


def edit(path: Path, change: Callable[[Tensors], object]) -> Path:
    """The folder with other tensors."""
    file = path / "model.safetensors"
    tensors = load(file)
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, file)
    return path


def edit_json(path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    described = json.loads((path / name).read_text())
    change(described)
    (path / name).write_text(json.dumps(described))
    return path


def shards(path: Path) -> Path:
    """The folder with its tensors in two files and an index."""
    file = path / "model.safetensors"
    tensors = load(file)
    file.unlink()
    names = sorted(tensors)
    homes = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        home = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / home)
        homes |= dict.fromkeys(part, home)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return path
