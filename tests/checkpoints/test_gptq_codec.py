"""GPTQ checkpoints: against what GPTQModel itself packs and dequantizes (golden/make_gptq.py), against the format's definition, and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from octavo.checkpoints import open_checkpoint

from .int_files import AT, gptq_tensors, refused, write

GOLDEN = load_file(Path(__file__).parent / "golden" / "gptq.safetensors")
CASES = sorted({name.rpartition(".")[0] for name in GOLDEN})
NAME = f"{AT}.weight"


def config(bits: int = 4, size: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": True, "desc_act": False, "checkpoint_format": "gptq", **more}


def made(rng: np.random.Generator, bits: int = 4, rows: int = 32, width: int = 64, size: int = 32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random (codes, zeros, scales)."""
    groups = -(-width // size)
    return (rng.integers(0, 1 << bits, (rows, width)), rng.integers(1, 1 << bits, (rows, groups)),
            rng.uniform(0.01, 1, (rows, groups)).astype(np.float16).astype(np.float32))


def values(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray, index: np.ndarray) -> np.ndarray:
    return ((codes - zeros[:, index]) * scales[:, index]).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_as_gptqmodel_dequantizes(case: str, tmp_path: Path) -> None:
    bits, kind, version = case.split(".")
    tensors = {f"{AT}.{part}": GOLDEN[f"{case}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
    width = len(GOLDEN[f"{case}.g_idx"])
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, config(
        int(bits), -1 if kind == "channel" else 32, sym=kind in ("symmetric", "channel"), desc_act=kind == "ordered",
        checkpoint_format="gptq" if version == "v1" else "gptq_v2", meta={"quantizer": ["gptqmodel:7.7.0"]})))
    info = checkpoint.tensors[NAME]
    symmetric = kind in ("symmetric", "channel")
    assert info.shape == (32, width) and info.spec is not None and info.spec.symmetric == symmetric and info.spec.bits == int(bits)
    assert info.stored.startswith("gptq") and ("symmetric" in info.stored) == symmetric and ("act-order" in info.stored) == (kind == "ordered")
    whole = checkpoint.read(NAME)
    assert (whole.order is not None) == (kind == "ordered") and whole.spec == info.spec
    expected = GOLDEN[f"{case}.weight"]
    # The library multiplies in float16: our exact product, rounded once, is the same.
    np.testing.assert_array_equal(whole.dequantize().astype(np.float16), expected)
    for rows in (slice(0, 16), slice(16, 32), slice(5, 6), slice(7, 29), slice(3, 3)):
        np.testing.assert_array_equal(checkpoint.read(NAME, rows).dequantize().astype(np.float16), expected[rows])
    checkpoint.release(NAME)
    assert any("zero points of 0" in note for note in checkpoint.notes) == (kind in ("asymmetric", "ordered") and version == "v1")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "width", "size"), [(32, 64, 32), (8, 32, 16), (40, 96, 64), (33, 72, 24), (1, 8, 8), (96, 160, 1000)])
def test_definition(bits: int, rows: int, width: int, size: int, tmp_path: Path) -> None:
    """Odd shapes, which the library does not pack: ragged groups, outputs and inputs that fill no word, other makers' wrapped zero points."""
    rng = np.random.default_rng(bits * rows + width)
    codes, zeros, scales = made(rng, bits, rows, width, size)
    zeros[0, 0] = 0
    index = np.arange(width) // size
    for version, minus in (("gptq", 1), ("gptq_v2", 0)):
        path = write(tmp_path / version, gptq_tensors(codes, zeros, scales, bits, index, minus), config(bits, size, sym=False, checkpoint_format=version))
        checkpoint = open_checkpoint(path)
        tensor = checkpoint.read(NAME)
        np.testing.assert_array_equal(tensor.dequantize(), values(codes, zeros, scales, index))
        np.testing.assert_array_equal(tensor.codes, codes)
        assert len(checkpoint.notes) == minus and tensor.spec.granularity == ("channel" if size >= width else "group")


@pytest.mark.parametrize("word", [8, 16, 32, 64])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_other_words(word: int, version: str, tmp_path: Path) -> None:
    codes, zeros, scales = made(np.random.default_rng(word), 4, 64, 64, 32)
    tensors = gptq_tensors(codes, zeros, scales, 4, None, version == "gptq", word)
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, config(sym=False, pack_dtype=f"int{word}", checkpoint_format=version)))
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize(), values(codes, zeros, scales, np.arange(64) // 32))


def test_zero_points_of_whole_words(tmp_path: Path) -> None:
    """GPTQModel takes one off each field of a word at once: a zero point of 0 borrows from its neighbour. Others wrap the field alone."""
    codes, zeros, scales = made(np.random.default_rng(1), 4, 8, 32, 32)
    zeros[:, 0] = [0, 5, 9, 0, 0, 15, 1, 3]
    tensors = gptq_tensors(codes, zeros, scales, 4, None, 0)
    word = tensors[f"{AT}.qzeros"].view(np.uint32)
    carried = {**tensors, f"{AT}.qzeros": (word - np.uint32(0x11111111)).view(np.int32)}
    expected = values(codes, zeros, scales, np.zeros(32, int))
    path = write(tmp_path / "a", carried, config(sym=False, meta={"quantizer": ["gptqmodel:5.0.0"]}))
    np.testing.assert_array_equal(open_checkpoint(path).read(NAME).dequantize(), expected)
    path = write(tmp_path / "b", gptq_tensors(codes, zeros, scales, 4, None, 1), config(sym=False, meta={"quantizer": "auto_gptq:0.7"}))
    np.testing.assert_array_equal(open_checkpoint(path).read(NAME).dequantize(), expected)
    assert "zero points of 0" in open_checkpoint(path).notes[0]


@pytest.mark.parametrize(("version", "zero", "other"), [("gptq", 9, "gptq_v2"), ("gptq_v2", 7, "gptq")])
def test_zero_points_of_the_other_convention(version: str, zero: int, other: str, tmp_path: Path) -> None:
    """A symmetric file whose zero points are the midpoint only under the other convention decodes off by one: refused, with what to do."""
    codes, zeros, scales = made(np.random.default_rng(2))
    tensors = gptq_tensors(codes, np.full_like(zeros, zero), scales, 4, None, version == "gptq")
    error = refused(write(tmp_path / "m", tensors, config(checkpoint_format=version)), "model.safetensors", f"{AT}.qzeros",
                    f"zero point of {zero}", "symmetric: 8")
    assert f"checkpoint_format to '{other}'" in error.remedy
    # Where the config does not claim symmetric weights, the zero points mean what they say.
    path = write(tmp_path / "m", tensors, config(checkpoint_format=version, sym=False))
    np.testing.assert_array_equal(open_checkpoint(path).read(NAME).dequantize(), values(codes, np.full_like(zeros, zero), scales, np.arange(64) // 32))


def test_symmetric_is_a_claim(tmp_path: Path) -> None:
    codes, zeros, scales = made(np.random.default_rng(3))
    zeros[0, 0], zeros[0, 1] = 3, 4
    checkpoint = open_checkpoint(write(tmp_path / "m", gptq_tensors(codes, zeros, scales, 4), config()))
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize(), values(codes, zeros, scales, np.arange(64) // 32))
    assert "says symmetric" in checkpoint.notes[0]


def test_group_indices(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    codes, zeros, scales = made(rng, 4, 32, 96, 32)
    zeros[:] = 8
    straight = np.arange(96) // 32
    shuffled = rng.permutation(straight)
    unequal = np.sort(np.repeat([0, 1, 2], [16, 48, 32]))  # common length 16
    for number, (index, claims, order, size) in enumerate([
            (straight, False, False, 32), (straight, True, False, 32), (shuffled, True, True, 32), (shuffled, False, True, 32), (unequal, True, False, 16),
            (rng.permutation(unequal), True, True, 16), (straight[::-1], True, True, 32)]):
        checkpoint = open_checkpoint(write(tmp_path / str(number), gptq_tensors(codes, zeros, scales, 4, index), config(desc_act=claims)))
        tensor = checkpoint.read(NAME)
        np.testing.assert_array_equal(tensor.dequantize(), values(codes, zeros, scales, index))
        np.testing.assert_array_equal(checkpoint.read(NAME, slice(16, 32)).dequantize(), values(codes, zeros, scales, index)[16:32])
        assert (tensor.order is not None) == order and tensor.spec.size == size
        assert bool(checkpoint.notes) == (order and not claims)
    tensors = gptq_tensors(codes, zeros, scales, 4, np.zeros(96))
    checkpoint = open_checkpoint(write(tmp_path / "zero", tensors, config()))
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize(), values(codes, zeros, scales, straight))
    assert "all zero" in checkpoint.notes[0]
    refused(write(tmp_path / "zero", tensors, config(desc_act=True)), "g_idx", "group 0 of 3")
    odd = np.sort(np.repeat([0, 1, 2], [31, 33, 32]))
    refused(write(tmp_path / "odd", gptq_tensors(codes, zeros, scales, 4, odd), config(desc_act=True)), "g_idx", "no common length")
    refused(write(tmp_path / "none", gptq_tensors(codes, zeros, scales, 4), config(desc_act=True)), "g_idx", "is missing")


def test_dynamic(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    tensors, expected = {}, {}
    for module, bits, size in (("model.layers.0.mlp.up_proj", 4, 32), ("model.layers.1.mlp.up_proj", 8, 64), ("model.layers.1.mlp.gate_proj", 2, 32)):
        codes, zeros, scales = made(rng, bits, 32, 64, size)
        tensors |= {name.replace(AT, module): array for name, array in gptq_tensors(codes, zeros, scales, bits).items()}
        expected[f"{module}.weight"] = values(codes, zeros, scales, np.arange(64) // size)
    tensors["lm_head.weight"] = np.ones((4, 64), np.float32)
    dynamic = {r"-:lm_head": {}, r"+:.*\.1\..*up.*": {"bits": 8, "group_size": 64}, r".*\.(?:gate)_proj": {"bits": 2}}
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, config(sym=False, dynamic=dynamic)))
    for name, numbers in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name).dequantize(), numbers)
    assert checkpoint.tensors["lm_head.weight"].stored == "F32"
    refused(write(tmp_path / "m", tensors, config(sym=False, dynamic={"-:.*up_proj": {}, **dynamic})), "up_proj.qweight", "`dynamic`")
    refused(write(tmp_path / "m", tensors, config(sym=False, dynamic={"+:(((": {}})), "config.json", "dynamic")
    refused(write(tmp_path / "m", tensors, config(sym=False, dynamic={".*": {"bits": "many"}})), "config.json", "bits is 'many'")


def test_older_folder(tmp_path: Path) -> None:
    """AutoGPTQ's first files: config.json says nothing, quantize_config.json all. Biases stay what they are."""
    codes, zeros, scales = made(np.random.default_rng(6))
    path = write(tmp_path / "m", {**gptq_tensors(codes, zeros, scales, 4), f"{AT}.bias": np.ones(32, np.float16)}, {})
    (path / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": False}))
    checkpoint = open_checkpoint(path)
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize(), values(codes, zeros, scales, np.arange(64) // 32))
    assert set(checkpoint.tensors) == {NAME, f"{AT}.bias"} and checkpoint.codec == "gptq" and not checkpoint.notes
    np.testing.assert_array_equal(checkpoint.read(f"{AT}.bias").dequantize(), np.ones(32))


@pytest.mark.parametrize(("change", "parts"), [
    ({"bits": 5}, ["bits is '5'"]), ({"bits": 1}, ["bits"]), ({"bits": "4"}, ["bits"]), ({"bits": True}, ["bits"]), ({"bits": None}, ["has no bits"]),
    ({"group_size": 0}, ["group_size is '0'"]), ({"group_size": -2}, ["group_size"]), ({"group_size": 1 << 40}, ["group_size"]),
    ({"group_size": 16}, [f"{AT}.scales", "2 groups"]), ({"sym": "yes"}, ["sym is 'yes'"]), ({"bits": 8}, [f"{AT}.qweight", "32 inputs"]),
    ({"checkpoint_format": "marlin"}, ["'marlin'", "gptq_v2"]), ({"checkpoint_format": "gptq_p"}, ["gptq_p"]), ({"is_marlin_format": True}, ["marlin"]),
    ({"format": "gptq_v2"}, ["two formats"]), ({"pack_dtype": "float32"}, ["pack_dtype"]), ({"pack_dtype": "int64"}, [f"{AT}.qweight", "I32"]),
    ({"dynamic": []}, []), ({"dynamic": [1]}, ["dynamic"]), ({"dynamic": {"a": 1}}, ["dynamic"]), ({"bits": 3, "pack_dtype": "int16"}, ["3 bits"])])
def test_hostile_configs(change: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    codes, zeros, scales = made(np.random.default_rng(7))
    tensors = gptq_tensors(codes, np.full_like(zeros, 8), scales, 4, np.arange(64) // 32)
    if change == {"bits": 8}:
        del tensors[f"{AT}.g_idx"]
        parts = [f"{AT}.scales", "32 inputs"]
    path = write(tmp_path / "m", tensors, {**config(), **change})
    if not parts:
        assert open_checkpoint(path).tensors
        return
    refused(path, "model.safetensors" if AT in parts[0] else "config.json", *parts)


@pytest.mark.parametrize(("part", "array", "what"), [
    ("qzeros", None, "is missing"), ("scales", None, "is missing"), ("qweight", None, "qweight"), ("qzeros", np.zeros((2, 3), np.int32), "has shape"),
    ("qzeros", np.zeros((3, 4), np.int32), "has shape"), ("scales", np.zeros((2, 31), np.float16), "has shape"), ("qweight", np.zeros((7, 32), np.int32), "64"),
    ("qweight", np.zeros((8, 32), np.float32), "of type F32"), ("scales", np.zeros((2, 32), np.int32), "of type I32"),
    ("qweight", np.zeros(256, np.int32), "shape"),
    ("g_idx", np.full(64, 2, np.int32), "names group 2, there are 2"), ("g_idx", np.full(64, -1, np.int32), "names group -1"),
    ("g_idx", np.zeros(65, np.int32), "65 inputs"), ("g_idx", np.zeros(64, np.float32), "of type F32"), ("g_idx", np.zeros((0,), np.int32), "is empty"),
    ("scales", np.full((2, 32), np.inf, np.float16), "NaN or infinity"), ("qweight", np.zeros((8, 0), np.int32), "is empty"),
    ("weight", np.zeros((32, 64), np.float32), "twice")])
def test_hostile_tensors(part: str, array: np.ndarray | None, what: str, tmp_path: Path) -> None:
    codes, zeros, scales = made(np.random.default_rng(8))
    tensors = gptq_tensors(codes, np.full_like(zeros, 8), scales, 4, np.arange(64) // 32)
    if array is None:
        del tensors[f"{AT}.{part}"]
    else:
        tensors[f"{AT}.{part}"] = array
    refused(write(tmp_path / "m", tensors, config()), "model.safetensors" if array is not None else str(tmp_path), AT, what)
