"""Writing GGUF: blocks against ggml's reference (the gguf package, and errors measured of ggml's C code), packing back, choice of types."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from octavo import _native
from octavo.checkpoints import InexactError, WriterOptions
from octavo.checkpoints._gguf_mixes import Model, type_of
from octavo.checkpoints._gguf_names import place_of_rows, row_order
from octavo.checkpoints._gguf_pack import BLOCK, MOST, factored, pack, why_not
from octavo.checkpoints._gguf_types import QUANTIZED
from octavo.checkpoints._gguf_writer import NUMBER, GgufWriter
from octavo.errors import UsageError
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

SIMPLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
# Root mean square error of ggml's own quantizers (llama.cpp of llama-cpp-python 0.3.36, no importance matrix) on `values`.
GGML = {"normal": {"Q2_K": 5.946632e-03, "Q3_K": 3.021882e-03, "Q4_K": 1.430965e-03, "Q5_K": 7.247111e-04, "Q6_K": 3.559804e-04, "IQ4_NL": 1.526391e-03},
        "tailed": {"Q2_K": 9.787075e-03, "Q3_K": 5.232787e-03, "Q4_K": 2.471437e-03, "Q5_K": 1.248209e-03, "Q6_K": 6.537642e-04, "IQ4_NL": 2.659896e-03}}


def values(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((256, 1024)).astype(np.float32) * np.float32(0.02)
    return normal if kind == "normal" else (rng.standard_t(4, (256, 1024)) * 0.02).astype(np.float32)


def encoded(kind: str, x: np.ndarray, isa: str = "") -> np.ndarray:
    block, size = BLOCK[kind]
    out = np.zeros((len(x), x.shape[1] // block * size), np.uint8)
    assert _native.encode_blocks(NUMBER[kind], x, out, isa) == 0
    return out


def hard() -> np.ndarray:
    """Zeros, one number, equal numbers, ties of sign, subnormals, halves exactly between two codes."""
    rng = np.random.default_rng(2)
    rows = [np.zeros(256), np.eye(1, 256, 7)[0], np.full(256, -0.3), np.tile([1.0, -1.0], 128), rng.standard_normal(256) * 1e-9,
            rng.standard_normal(256) * 1e-41, rng.integers(-254, 255, 256) / 2, rng.integers(-8, 8, 256) / 8, rng.uniform(3, 5, 256), rng.uniform(-5, -3, 256)]
    return np.array(rows, np.float32)


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("isa", _native.available_isas())
def test_simple_types_are_ggmls_byte_for_byte(kind: str, isa: str) -> None:
    for x in (values("normal")[:32], values("tailed")[:32], hard()[[0, 1, 2, 3, 6, 7, 8, 9]]):
        with np.errstate(all="ignore"):
            expected = quants.quantize(x, GGMLQuantizationType[kind])
        np.testing.assert_array_equal(encoded(kind, x, isa), expected)
    encoded(kind, hard(), isa)  # what is too small for float16 becomes zero, or its smallest step


@pytest.mark.parametrize("kind", GGML["normal"])
@pytest.mark.parametrize("content", GGML)
def test_searched_types_are_closer_than_ggmls(kind: str, content: str) -> None:
    x = values(content)
    blocks = encoded(kind, x)
    error = np.sqrt(np.mean((quants.dequantize(blocks, GGMLQuantizationType[kind]) - x) ** 2))
    assert error < GGML[content][kind]
    for isa in _native.available_isas():
        np.testing.assert_array_equal(encoded(kind, x[:8], isa), blocks[:8])
    assert np.isfinite(quants.dequantize(encoded(kind, hard()), GGMLQuantizationType[kind])).all()


def test_sixteen_bit_numbers_are_rounded_like_their_float32() -> None:
    x = values("normal")[:16]
    brain = (x.view(np.uint32) >> 16).astype(np.uint16)
    for kind in ("Q4_0", "Q8_0", "Q6_K"):
        np.testing.assert_array_equal(encoded(kind, x.astype(np.float16)), encoded(kind, x.astype(np.float16).astype(np.float32)))
        brain.flags.writeable = False  # as views of mapped files are
        np.testing.assert_array_equal(encoded(kind, brain), encoded(kind, (brain.astype(np.uint32) << 16).view(np.float32)))


def test_scales_beyond_float16_are_counted() -> None:
    x = np.full((2, 256), 1e7, np.float32)
    x[0] = 1
    for kind in (*SIMPLE[:5], *GGML["normal"]):
        block, size = BLOCK[kind]
        out = np.zeros((2, 256 // block * size), np.uint8)
        assert _native.encode_blocks(NUMBER[kind], x * np.float32(1e3), out) > 0, kind
    with pytest.raises(ValueError, match="shapes"):
        _native.encode_blocks(2, x, np.zeros((2, 7), np.uint8))
    with pytest.raises(ValueError, match="known type"):
        _native.encode_blocks(16, x, np.zeros((2, 66), np.uint8))


def tensor_of(kind: str, blocks: np.ndarray) -> QTensor:
    """Rows of blocks as the codec reads them."""
    block, size = BLOCK[kind]
    codes, scales, offsets = QUANTIZED[kind].decode(blocks.reshape(-1, size))
    shape = (len(blocks), blocks.shape[1] // size * block)
    return QTensor(np.ascontiguousarray(codes).reshape(shape), scales.reshape(len(blocks), -1), QUANTIZED[kind].spec, shape,
                   offsets=None if offsets is None else offsets.reshape(len(blocks), -1))


@pytest.mark.parametrize("kind", [*SIMPLE, *GGML["normal"]])
def test_what_was_read_is_packed_back(kind: str) -> None:
    """Byte for byte; of K types, whose factors are found again, number for number."""
    blocks = np.concatenate([encoded(kind, values("normal")[:64]), encoded(kind, np.zeros((2, 1024), np.float32))])
    tensor = tensor_of(kind, blocks)
    if kind == "TQ2_0":  # read as 3 bits: the fourth value, which ggml never writes, is 2
        tensor = QTensor(tensor.codes, tensor.scales, TensorSpec("int2", "group", 256, scale_format="fp16"), tensor.shape)
    again = pack(kind, tensor)
    if kind in MOST:
        np.testing.assert_array_equal(quants.dequantize(again, GGMLQuantizationType[kind]), quants.dequantize(blocks, GGMLQuantizationType[kind]))
    else:
        np.testing.assert_array_equal(again, blocks)


def test_integers_of_any_group_go_into_blocks_of_32() -> None:
    x = values("normal")[:64]
    for spec, kinds in ((TensorSpec("int4", "group", 128, scale_format="fp16"), ("Q4_0", "Q5_0", "Q8_0")),
                        (TensorSpec("int4", "group", 64, symmetric=False, scale_format="fp16"), ("Q8_0",)),
                        (TensorSpec("int3", "group", 32, scale_format="fp16"), ("Q4_0", "Q8_0"))):
        tensor = quantize(x, spec)
        for kind in kinds:
            assert why_not(kind, spec, 1024) is None
            np.testing.assert_array_equal(quants.dequantize(pack(kind, tensor), GGMLQuantizationType[kind]), tensor.dequantize())
    assert "not int8" in str(why_not("Q4_0", TensorSpec("int8", "channel"), 1024))
    assert "whole blocks" in str(why_not("Q4_0", TensorSpec("int4", "channel"), 100))
    assert "per group of 16" in str(why_not("Q8_0", TensorSpec("int6", "group", 16), 1024))
    with pytest.raises(InexactError, match="float16"):
        pack("Q8_0", quantize(x, TensorSpec("int8", "channel")))
    with pytest.raises(InexactError, match=r"minimums .* float16"):
        pack("Q4_1", quantize(x, TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16")))
    with pytest.raises(InexactError, match="permuted"):
        tensor = quantize(x, TensorSpec("int4", "group", 32, scale_format="fp16"))
        pack("Q4_0", QTensor(tensor.codes, tensor.scales, tensor.spec, tensor.shape, order=np.arange(1024, dtype=np.int32)))


def test_factors_are_found_again() -> None:
    rng = np.random.default_rng(0)
    d = rng.uniform(-3, 3, 500).astype(np.float16)
    whole = rng.integers(-32, 32, (500, 16))
    wanted = d.astype(np.float32)[:, None] * whole.astype(np.float32)
    factor, found = factored(wanted, 31, -32)
    np.testing.assert_array_equal(factor.astype(np.float32)[:, None] * found, wanted)
    with pytest.raises(InexactError, match="small integers"):
        factored(wanted + np.float32(1e-3), 31, -32)


def test_rows_of_heads_have_their_places() -> None:
    for heads, head in ((3, 64), (8, 80), (1, 128)):
        rows = np.arange(heads * head)
        stored = np.empty_like(rows)
        for first in range(0, len(rows), 100):
            stored[place_of_rows(head, first, len(rows[first : first + 100]))] = rows[first : first + 100]
        np.testing.assert_array_equal(stored[row_order(heads, len(rows))], rows)


def test_mixes_are_llama_quantizes() -> None:
    """SmolLM2-135M's types as llama-quantize chose them: rows of 576 are no whole blocks of 256, rows of 1536 are."""
    model = Model(30, 3, True)
    assert type_of("Q4_0", "token_embd.weight", 576, model) == "Q8_0" and type_of("Q4_0", "blk.3.ffn_up.weight", 576, model) == "Q4_0"
    down = [type_of("Q4_K_M", f"blk.{i}.ffn_down.weight", 1536, model) for i in range(30)]
    assert down.count("Q6_K") == 14 and down.count("Q4_K") == 16 and down[0] == "Q6_K" and down[3] == "Q4_K"
    assert type_of("Q4_K_M", "blk.0.attn_v.weight", 576, model) == "Q8_0" and type_of("Q4_K_M", "blk.4.attn_q.weight", 576, model) == "Q5_0"
    large = Model(32, 4, False)
    assert [type_of(v, "output.weight", 4096, large) for v in ("Q8_0", "Q4_0", "Q3_K_M", "MXFP4", "F16")] == ["Q8_0", "Q6_K", "Q6_K", "Q8_0", "F16"]
    assert type_of("Q2_K", "blk.9.attn_v.weight", 4096, large) == "Q4_K" and type_of("TQ2_0", "token_embd.weight", 4096, large) == "Q4_K"
    assert type_of("Q4_0", "blk.0.ffn_up.weight", 100, large) == "F16"


def test_what_is_not_written_is_refused() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 32, "vocab_size": 40}
    with pytest.raises(UsageError, match=r"unknown GGUF type 'Q9_9'.*Q4_K_M"):
        GgufWriter(WriterOptions("Q9_9", config))
    with pytest.raises(UsageError, match=r"'bert' are not written"):
        GgufWriter(WriterOptions("Q4_0", {**config, "model_type": "bert"}))
    with pytest.raises(UsageError, match=r"rope scaling 'dynamic'"):
        GgufWriter(WriterOptions("Q4_0", {**config, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}))
    with pytest.raises(UsageError, match=r"no place in a GGUF file"):
        GgufWriter(WriterOptions("Q4_0", config)).parts("model.layers.0.mlp.experts.0.up_proj.weight", TensorSpec("bf16"), (64, 64))
