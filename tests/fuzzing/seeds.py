"""Sound checkpoints of every codec, small enough to be mutated and read a hundred times a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from checkpoints.checkpoint_files import add_vocabulary
from checkpoints.test_hqq_codec import CASES as HQQ_CASES
from checkpoints.test_hqq_codec import folder as hqq
from checkpoints.test_torchao import HEADERS, golden, opened
from doctor import patients as p
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

from octavo.conversion import convert
from octavo.loading import load

Seed = Callable[[Path], Path]
WIDTH, ROWS = 256, 32


def small(make: Seed) -> Seed:
    def made(path: Path) -> Path:
        with p.sized(64, 64, 1):
            return make(path)

    return made


def auto_round(path: Path) -> Path:
    def rename(config: dict) -> None:
        said = config["quantization_config"]
        said.pop("checkpoint_format"), said.pop("desc_act")
        said |= {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "data_type": "int", "extra_config": {}}

    return p.edit_json(p.edit(p.gptq(path), lambda t: [t.pop(name) for name in list(t) if name.endswith("g_idx")]), "config.json", rename)


def fbgemm(path: Path) -> Path:
    tensors = p.others()
    for name, weight in p.weights().items():
        scales = (np.abs(weight).max(axis=1, keepdims=True) / 448).astype(np.float32)
        tensors |= {f"{name}.weight": (weight / scales).astype(p.E4M3), f"{name}.weight_scale": scales}
    return p.write(path, tensors, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]})


def mxfp4_experts(path: Path) -> Path:
    rng = np.random.default_rng(2)
    tensors = p.others()
    at = "model.layers.0.mlp"
    tensors |= {f"{at}.router.weight": rng.standard_normal((2, 64)).astype(p.BF16), f"{at}.router.bias": np.zeros(2, p.BF16)}
    for part, rows in (("gate_up_proj", 128), ("down_proj", 64)):
        tensors |= {f"{at}.experts.{part}_blocks": rng.integers(0, 256, (2, rows, 2, 16), dtype=np.uint8),
                    f"{at}.experts.{part}_scales": rng.integers(110, 125, (2, rows, 2), dtype=np.uint8),
                    f"{at}.experts.{part}_bias": np.zeros((2, rows), p.BF16)}
    return p.write(path, tensors, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}, model_type="gpt_oss")


def converted(to: str, quantization: str | None = None) -> Seed:
    """The plain model as a Writer of Octavo's own leaves it."""
    def make(path: Path) -> Path:
        convert(p.plain(path.with_name(path.name + "-source")), path, to=to, quantization=quantization, threads=1)
        return path

    return make


def fastdeploy(path: Path) -> Path:
    return p.edit_json(p.plain(path), "config.json", lambda c: c.update(torch_dtype="bfloat16", quantization_config={
        "quantization": "wint4", "is_quantized": False}))


def torchao(kind: str) -> Seed:
    def make(path: Path) -> Path:
        tensors, _ = golden(kind)
        opened(path, tensors, HEADERS[kind])
        return path

    return make


def own(path: Path) -> Path:
    """Octavo's own copies, as loading leaves them in the cache."""
    source = p.plain(path.with_name(path.name + "-source"))
    cache = path.with_name(path.name + "-cache")
    load(source, quantization="W4g32A8", cache_dir=cache, threads=1)
    (folder,) = (cache / "models").iterdir()
    folder.rename(path)
    return path


def gguf(*types: str) -> Seed:
    """A Llama of one layer whose matrices are of these types in turn; blocks of random bytes, low enough for every float in them to be finite."""
    def make(path: Path) -> Path:
        path.mkdir(parents=True)
        rng = np.random.default_rng(3)
        file = path / "m.gguf"
        writer = GGUFWriter(file, "llama")
        for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, WIDTH),
                           (writer.add_feed_forward_length, ROWS), (writer.add_head_count, 1), (writer.add_head_count_kv, 1), (writer.add_key_length, ROWS),
                           (writer.add_value_length, ROWS), (writer.add_vocab_size, 40)):
            add(value)
        writer.add_layer_norm_rms_eps(1e-5)
        add_vocabulary(writer, "gpt2")
        wide = ("token_embd", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.ffn_gate", "blk.0.ffn_up")
        for number, name in enumerate(wide):
            kind = GGMLQuantizationType[types[number % len(types)]]
            block, size = GGML_QUANT_SIZES[kind]
            rows = 40 if name == "token_embd" else ROWS
            blocks = rng.integers(0, 0x3B, (rows, WIDTH // block * size), dtype=np.uint8)
            writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)
        for name in ("blk.0.attn_output", "blk.0.ffn_down"):
            writer.add_tensor(f"{name}.weight", rng.integers(0, 0x3B, (WIDTH, 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


# Codec -> its seeds. A codec without one fails test_fuzz.py.
SEEDS: dict[str, dict[str, Seed]] = {
    "safetensors": {"whole": small(p.plain), "shards": small(lambda d: p.shards(p.plain(d)))},
    "gptq": {"v1": small(p.gptq), "v2, asymmetric": small(lambda d: p.gptq(d, sym=False, stored="gptq_v2", said="gptq_v2")),
             "3 bits": small(lambda d: p.gptq(d, bits=3)),
             "8 bits": small(lambda d: p.gptq(d, bits=8))},
    "awq": {"gemm": small(p.awq)}, "fastdeploy": {"to be quantized": small(fastdeploy)}, "hqq": {case: (lambda d, c=case: hqq(d, c)) for case in HQQ_CASES},
    "modelopt": {to: small(converted(to)) for to in ("modelopt:fp8", "modelopt:nvfp4")},
    "torchao": {kind: torchao(kind) for kind in HEADERS},
    "auto_round": {"auto_gptq": small(auto_round)},
    "bitsandbytes": {"nf4": small(p.nf4), "int8": small(converted("bitsandbytes", "W8A16"))},
    "fp8": {"blocks": small(p.fp8_blocks)},
    "fbgemm_fp8": {"rows": small(fbgemm)},
    "mxfp4": {"experts": small(mxfp4_experts)},
    "compressed_tensors": {"pack": small(p.pack_quantized), "pack, 3 bits": small(lambda d: p.pack_quantized(d, 3)), "float": small(p.fp8_static),
                           **{name: small(converted("compressed-tensors", name)) for name in ("Wmxfp4A16", "W8A8", "W4g32zA16")}},
    "octavo": {"4 bits": small(own)},
    "gguf": {"legacy": gguf("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"), "k": gguf("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K"),
             "iq": gguf("IQ4_XS", "IQ3_S", "IQ2_XS", "IQ2_XXS", "IQ3_XXS", "IQ4_NL"), "odd": gguf("IQ1_S", "IQ1_M", "IQ2_S", "TQ1_0", "TQ2_0", "MXFP4")},
}


def model_path(folder: Path) -> Path:
    """What is opened: the folder, or the .gguf file in it."""
    return next(folder.glob("*.gguf"), folder)
