"""AWQ checkpoints: against what AutoAWQ itself packs and dequantizes (golden/make_awq.py), and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from octavo.checkpoints import open_checkpoint

from .int_files import AT, refused, write

GOLDEN = load_file(Path(__file__).parent / "golden" / "awq.safetensors")
NAME = f"{AT}.weight"
SIZES = {"g32": 32, "g64": 64, "mid": 32, "g128": 128}


def tensors_of(kind: str) -> dict[str, np.ndarray]:
    return {f"{AT}.{part}": GOLDEN[f"{kind}.{part}"] for part in ("qweight", "qzeros", "scales")}


def config(kind: str = "g32", **more: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": SIZES[kind], "zero_point": True, "version": "gemm", **more}


@pytest.mark.parametrize("kind", SIZES)
def test_as_autoawq_dequantizes(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors_of(kind), config(kind, zero_point=kind != "mid", modules_to_not_convert=["lm_head"])))
    info, expected = checkpoint.tensors[NAME], GOLDEN[f"{kind}.weight"]
    assert info.spec is not None and info.spec.symmetric == (kind == "mid") and info.spec.scale_format == "fp16" and info.shape == expected.shape
    assert info.stored == f"awq 4 bits, {'one group a row' if kind == 'g64' else f'groups of {SIZES[kind]}'}, {'symmetric' if kind == 'mid' else 'zero points'}"
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize().astype(np.float16), expected)
    for rows in (slice(0, 32), slice(16, 48), slice(5, 6), slice(7, 39), slice(63, 64)):
        np.testing.assert_array_equal(checkpoint.read(NAME, rows).dequantize().astype(np.float16), expected[rows])
    assert not checkpoint.notes
    checkpoint.release(NAME)


def test_older_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "m", tensors_of("g64"), {})
    (path / "config.json").write_text(json.dumps({"model_type": "tiny"}))
    (path / "quant_config.json").write_text(json.dumps({"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}))
    np.testing.assert_array_equal(open_checkpoint(path).read(NAME).dequantize().astype(np.float16), GOLDEN["g64.weight"])


def test_under_the_name_of_gptq(tmp_path: Path) -> None:
    """GPTQModel 7 writes this layout with quant_method gptq and checkpoint_format gemm, when it rounds without calibration."""
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False, "checkpoint_format": "gemm", "format": "gemm",
                    "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors_of("g32"), quantization))
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize().astype(np.float16), GOLDEN["g32.weight"])
    assert checkpoint.tensors[NAME].stored == "gptq gemm 4 bits, groups of 32, zero points"
    refused(write(tmp_path / "m", tensors_of("g32"), {**quantization, "bits": 8}), "8 bits")


def test_groups_of_the_whole_row(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors_of("g64"), config("g64", group_size=-1)))
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize().astype(np.float16), GOLDEN["g64.weight"])


@pytest.mark.parametrize(("change", "parts"), [
    ({"bits": 3}, ["bits is '3'"]), ({"bits": 8}, ["bits"]), ({"group_size": 0}, ["group_size"]), ({"group_size": 64}, [f"{AT}.scales", "3 groups"]),
    ({"version": "gemv"}, ["'gemv'", "save it again"]), ({"version": "gemv_fast"}, ["gemv_fast"]), ({"version": "marlin"}, ["marlin"]),
    ({"version": "exllama"}, ["exllama", "names a kernel"]), ({"version": "ipex"}, ["ipex", "names a kernel"]), ({"backend": "llm-awq"}, ["llm-awq"]),
    ({"checkpoint_format": "gemv"}, ["gemv"]), ({"zero_point": 1}, ["zero_point"]), ({"group_size": 100}, ["multiple"])])
def test_hostile_configs(change: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    tensors = tensors_of("g32")
    if change == {"group_size": 100}:
        tensors = {**tensors_of("g128"), f"{AT}.scales": np.ones((3, 64), np.float16)}
    path = write(tmp_path / "m", tensors, {**config(), **change})
    refused(path, "model.safetensors" if AT in parts[0] or change == {"group_size": 100} else "config.json", *parts)


@pytest.mark.parametrize(("part", "array", "what"), [
    ("qzeros", None, "is missing"), ("scales", None, "is missing"), ("qweight", None, "qweight"), ("qzeros", np.zeros((3, 7), np.int32), "has shape"),
    ("scales", np.zeros((3, 56), np.float16), "has shape"), ("qweight", np.zeros((96, 8), np.int16), "of type I16"),
    ("qweight", np.zeros((0, 8), np.int32), "is empty"),
    ("scales", np.full((3, 64), np.nan, np.float16), "NaN or infinity"), ("g_idx", np.zeros(96, np.int32), "GPTQ's"),
    ("weight", np.zeros((2, 2), np.int8), "twice")])
def test_hostile_tensors(part: str, array: np.ndarray | None, what: str, tmp_path: Path) -> None:
    tensors = tensors_of("g32")
    if array is None:
        del tensors[f"{AT}.{part}"]
    else:
        tensors[f"{AT}.{part}"] = array
    refused(write(tmp_path / "m", tensors, config()), "model.safetensors" if array is not None else str(tmp_path), AT, what)


@pytest.mark.parametrize(("word", "zero"), [(0x77777777, 7), (0x99999999, 9)])
def test_zero_points_one_off(word: int, zero: int, tmp_path: Path) -> None:
    tensors = {**tensors_of("mid"), f"{AT}.qzeros": np.full((2, 8), word, np.uint32).view(np.int32)}
    refused(write(tmp_path / "m", tensors, config("mid", zero_point=False)), "qzeros", f"zero point of {zero}", "symmetric: 8")
    assert open_checkpoint(write(tmp_path / "m", tensors, config("mid"))).read(NAME).spec.symmetric is False
