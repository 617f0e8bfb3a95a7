"""GGUF against the gguf package (to the bit) and against transformers' reading of the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants

from octavo.checkpoints import open_checkpoint
from octavo.checkpoints._gguf_config import llama3_factors
from octavo.checkpoints._gguf_names import hugging_face_name, row_order
from octavo.checkpoints._gguf_types import QUANTIZED, STORAGE
from octavo.errors import CheckpointError, ModelError
from octavo.qtensor import QTensor

from .checkpoint_files import LAYERS, write_gguf

BLOCK_BYTES = {s.name: s.bytes for s in STORAGE.values()}


def dequantized(kind: str, blocks: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        codes, scales, offsets = QUANTIZED[kind].decode(blocks)
        spec = QUANTIZED[kind].spec
        scales = scales.reshape(len(codes), -1)
        outer = np.float32(1) if spec.format == "nvfp4" else None
        return QTensor(np.ascontiguousarray(codes), scales, spec, codes.shape, offsets=offsets, outer=outer).dequantize()


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    same = (ours.view(np.uint32) == np.ascontiguousarray(theirs).view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all()


# The package has no dequantizer for these; below, their values are worked out from ggml's definition.
NOT_IN_THE_PACKAGE = ("Q8_1", "Q8_K", "Q1_0")
# Types that the package only reads: where their float16 factors lie.
FACTORS = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,),
           "IQ3_S": (0,), "IQ1_S": (0,), "IQ1_M": (), "IQ4_NL": (0,), "IQ4_XS": (0,), "NVFP4": ()}


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if kind not in NOT_IN_THE_PACKAGE])
@pytest.mark.parametrize("content", ["random", "zeros", "ones", "quantized"])
def test_each_type_dequantizes_to_the_bit(kind: str, content: str) -> None:
    size = BLOCK_BYTES[kind]
    if content == "random":
        blocks = np.random.default_rng(0).integers(0, 256, (512, size), np.uint8)
    elif content == "quantized":
        if kind in FACTORS:  # finite factors, random codes
            blocks = np.random.default_rng(0).integers(0, 256, (512, size), np.uint8)
            for at in FACTORS[kind]:
                blocks[:, at : at + 2] = np.linspace(-2, 2, 512, dtype=np.float16)[:, None].view(np.uint8)
        else:
            values = np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32)
            blocks = quants.quantize(values, GGMLQuantizationType[kind])
    else:
        blocks = np.full((4, size), 0 if content == "zeros" else 255, np.uint8)
    if kind == "MXFP4":
        blocks = blocks.reshape(-1, size)
        blocks[blocks[:, 0] == 255, 0] = 254  # NaN in the specification, which is refused when it is read
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, GGMLQuantizationType[kind])
    ours = dequantized(kind, blocks.reshape(-1, size)).reshape(expected.shape)
    if kind in ("MXFP4", "NVFP4"):  # the package takes the negative zero for zero
        ours, expected = ours + np.float32(0), expected.astype(np.float32) + np.float32(0)
    assert_same_bits(ours, expected)


def test_types_that_the_package_does_not_dequantize() -> None:
    rng = np.random.default_rng(1)
    numbers, factor = rng.integers(-128, 128, (3, 256), np.int8), np.array([[0.5], [-1.25], [0]], np.float32)
    expected = factor * numbers
    small = np.concatenate([factor.astype(np.float16).view(np.uint8), np.zeros((3, 2), np.uint8), numbers[:, :32].view(np.uint8)], axis=1)
    assert_same_bits(dequantized("Q8_1", small), np.ascontiguousarray(expected[:, :32]))
    large = np.concatenate([factor.view(np.uint8), numbers.view(np.uint8), np.full((3, 32), 9, np.uint8)], axis=1)
    assert_same_bits(dequantized("Q8_K", large), expected)
    bits = rng.integers(0, 2, (3, 128), np.uint8)
    packed = np.concatenate([factor.astype(np.float16).view(np.uint8), np.packbits(bits, axis=1, bitorder="little")], axis=1)
    assert_same_bits(dequantized("Q1_0", packed), np.where(bits == 1, factor, -factor))


def test_table_of_types_is_ggmls() -> None:
    from gguf import GGML_QUANT_SIZES

    for kind, storage in STORAGE.items():
        assert GGMLQuantizationType(kind).name == storage.name
        if storage.name != "Q8_1":  # the package counts two float32, ggml stores two float16
            assert GGML_QUANT_SIZES[GGMLQuantizationType(kind)] == (storage.block, storage.bytes)


def test_real_model_to_the_bit(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    interleaved = 0
    for tensor in GGUFReader(smollm2_path).tensors:
        name = hugging_face_name("llama", tensor.name)
        assert name is not None
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            heads = 9 if "attn_q" in tensor.name else 3
            expected = expected.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(expected.shape)
            interleaved += 1
        assert_same_bits(checkpoint.read(name).dequantize(), expected)
        checkpoint.release(name)
    assert interleaved == 60
    assert checkpoint.config["rope_theta"] == 100000.0 and checkpoint.config["rms_norm_eps"] == 1e-5
    assert checkpoint.config["tie_word_embeddings"] and checkpoint.config["vocab_size"] == 49152


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_same_weights_and_config_as_transformers(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    write_gguf(tmp_path / "m.gguf", architecture)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    ours = open_checkpoint(tmp_path / "m.gguf")
    state = {name: value.numpy() for name, value in theirs.state_dict().items() if name != "lm_head.weight"}
    assert set(state) == set(ours.tensors)
    for name, expected in state.items():
        assert ours.tensors[name].shape == expected.shape
        assert_same_bits(ours.read(name).dequantize(), expected)
    config = theirs.config.to_dict()
    for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "max_position_embeddings", "vocab_size", "tie_word_embeddings", "head_dim", "sliding_window",
                "hidden_act", "hidden_activation", "bos_token_id"):
        if key in config and key in ours.config:
            assert ours.config[key] == config[key], key
    assert ours.config["rms_norm_eps"] == pytest.approx(config["rms_norm_eps"], rel=1e-6)
    assert ours.config["eos_token_id"] == [2, 3]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_rows_are_rows_of_the_whole(kind: str, tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", kind))
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"):
        whole = ours.read(name).dequantize()
        for rows in (slice(0, 16), slice(5, 77), slice(100, None), slice(3, 3)):
            part = ours.read(name, rows)
            assert part.shape == whole[rows].shape
            assert_same_bits(part.dequantize(), whole[rows])
    assert ours.tensors["model.layers.0.mlp.up_proj.weight"].stored == kind


def test_plain_tensors_are_not_copied(tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf", "qwen3", "F16"))
    codes = ours.read("model.layers.0.self_attn.q_proj.weight").codes
    assert not codes.flags.owndata and not codes.flags.writeable


def test_row_order_undoes_the_interleaving() -> None:
    halves = np.arange(16)  # 2 heads of 8: first halves 0..3, second halves 4..7
    interleaved = halves.reshape(2, 2, 4).swapaxes(1, 2).reshape(16)  # as llama.cpp's converter stores them
    assert list(interleaved[:8]) == [0, 4, 1, 5, 2, 6, 3, 7]
    assert list(interleaved[row_order(2, 16)]) == list(halves)


def test_smollm3_rotates_three_layers_of_four(tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf", "smollm3"))
    assert ours.config["model_type"] == "smollm3" and ours.config["no_rope_layers"] == [1, 1][:LAYERS]


def test_window_makes_a_mistral(tmp_path: Path) -> None:
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", llama__attention__sliding_window=32))
    assert ours.config["model_type"] == "mistral" and ours.config["sliding_window"] == 32


def test_llama3_scaling_is_recognised_by_its_factors(tmp_path: Path) -> None:
    factors = llama3_factors(500000.0, 128, 32.0, 1.0, 4.0, 8192).astype(np.float32)
    ours = open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", extra={"rope_freqs.weight": factors}))
    assert ours.config["rope_scaling"] == {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                           "original_max_position_embeddings": 8192}
    assert "rope_freqs.weight" not in ours.tensors


def test_llama3_factors_are_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters={"rope_theta": 500000.0, **scaling})
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / llama3_factors(500000.0, 128, 8.0, 1.0, 4.0, 8192), inverse.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("metadata", "expected"), [
    ({"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 2.0, "llama__rope__scaling__original_context_length": 32},
     {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}),
    ({"llama__rope__scaling__type": "none"}, None),
])
def test_rope_scaling(metadata: dict[str, object], expected: dict[str, object] | None, tmp_path: Path) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", **metadata)).config.get("rope_scaling") == expected


def test_what_is_not_computed_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'blk\.0\.attn_sinks\.weight' is unknown in architecture 'llama'"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", extra={"blk.0.attn_sinks.weight": np.zeros(8, np.float32)}))
    with pytest.raises(ModelError, match="experts"):
        open_checkpoint(write_gguf(tmp_path / "n.gguf", "llama", llama__expert_count=8))
    with pytest.raises(CheckpointError, match=r"one of 3 parts.*llama-gguf-split"):
        open_checkpoint(write_gguf(tmp_path / "p.gguf", "llama", split__count=3))


def test_scale_of_a_whole_nvfp4_tensor(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.v_proj.weight"
    scale = {"blk.0.attn_v.scale": np.array([0.37], np.float32), "blk.0.attn_v.input_scale": np.ones(1, np.float32)}
    plain = open_checkpoint(write_gguf(tmp_path / "a.gguf", "llama", "NVFP4"))
    scaled = open_checkpoint(write_gguf(tmp_path / "b.gguf", "llama", "NVFP4", extra=scale))
    assert set(plain.tensors) == set(scaled.tensors) and not plain.notes
    assert len(scaled.notes) == 1 and "1 input scales" in scaled.notes[0]
    np.testing.assert_allclose(scaled.read(name).dequantize(), plain.read(name).dequantize() * np.float32(0.37), rtol=1e-6)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A model in three files, written by the package; its tensors are those of whole.gguf."""
    write_gguf(tmp_path / "whole.gguf", "llama", "Q5_0")
    write_gguf(tmp_path / "m.gguf", "llama", "Q5_0", split=7)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_parts_are_one_model(parts: list[Path], tmp_path: Path) -> None:
    whole = open_checkpoint(tmp_path / "whole.gguf")
    for path in parts:
        split = open_checkpoint(path)
        assert split.config == whole.config and set(split.tensors) == set(whole.tensors) and split.path == parts[0]
        for name in whole.tensors:
            assert_same_bits(split.read(name).dequantize(), whole.read(name).dequantize())
            split.release(name)
    assert split.tokenizer_files()["tokenizer"].encode("the").ids == whole.tokenizer_files()["tokenizer"].encode("the").ids
    key = split.content_key(tmp_path / "cache")
    data = bytearray(parts[2].read_bytes())
    data[-1] ^= 1
    parts[2].write_bytes(data)
    assert open_checkpoint(parts[0]).content_key(tmp_path / "cache") != key


def test_parts_that_do_not_belong_together_are_refused(parts: list[Path]) -> None:
    second = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: is missing"):
        open_checkpoint(parts[2])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"split\.no is '2', not 1"):
        open_checkpoint(parts[0])
    parts[1].write_bytes(second)
    parts[0].unlink()
    with pytest.raises(CheckpointError, match="the first part is missing"):
        open_checkpoint(parts[2])


def test_types_that_are_not_known_are_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", "Q4_0")
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    data[at : at + 4] = (4).to_bytes(4, "little")  # Q4_2, which llama.cpp dropped in 2023
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tensor 'blk\.0\.attn_q\.weight'"):
        open_checkpoint(path)
