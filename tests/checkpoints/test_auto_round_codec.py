"""AutoRound checkpoints: against what AutoRound itself packs and dequantizes (golden/make_auto_round.py), and hostile ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from octavo.checkpoints import open_checkpoint

from .int_files import AT, refused, write

GOLDEN = load_file(Path(__file__).parent / "golden" / "auto_round.safetensors")
CASES = sorted({name.rpartition(".")[0] for name in GOLDEN})
PACKING = {"auto_gptq": "auto_round:auto_gptq", "gptqmodel": "auto_round:gptqmodel", "plain": "auto_round", "auto_awq": "auto_round:auto_awq"}
NAME = f"{AT}.weight"


def tensors_of(case: str, module: str = AT) -> dict[str, np.ndarray]:
    return {f"{module}.{part}": GOLDEN[f"{case}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx") if f"{case}.{part}" in GOLDEN}


def config(case: str, **more: Any) -> dict[str, Any]:
    kind, bits, symmetry = case.split(".")
    return {"quant_method": "auto-round", "bits": int(bits), "group_size": 32, "sym": symmetry == "symmetric", "data_type": "int",
            "packing_format": PACKING[kind], "block_name_to_quantize": "model.layers", "act_bits": 16, **more}


@pytest.mark.parametrize("case", CASES)
def test_as_auto_round_dequantizes(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors_of(case), config(case)))
    expected, info = GOLDEN[f"{case}.weight"], checkpoint.tensors[NAME]
    assert info.spec is not None and info.spec.symmetric == case.endswith(".symmetric") and info.stored.startswith("auto-round ")
    np.testing.assert_array_equal(checkpoint.read(NAME).dequantize().astype(np.float16), expected)
    for rows in (slice(0, 16), slice(16, 32), slice(5, 27)):
        np.testing.assert_array_equal(checkpoint.read(NAME, rows).dequantize().astype(np.float16), expected[rows])
    assert checkpoint.codec == "auto_round" and not checkpoint.notes


def test_layers_of_their_own(tmp_path: Path) -> None:
    modules = {"model.layers.0.mlp.up_proj": "auto_gptq.4.symmetric", "model.layers.1.mlp.up_proj": "auto_gptq.8.symmetric", "lm_head": "auto_gptq.2.symmetric",
               "model.layers.2.mlp.down_proj": "auto_gptq.3.asymmetric"}
    tensors = {name: array for module, case in modules.items() for name, array in tensors_of(case, module).items()}
    extra = {"lm_head": {"bits": 2, "act_bits": None, "super_bits": None, "rotation_config": None}, ".*layers\\.1\\..*": {"bits": 8},
             ".*\\.2\\..*": {"bits": 3, "sym": False}}
    quantization = config("auto_gptq.4.symmetric", extra_config=extra, quant_method="intel/auto-round")
    del quantization["packing_format"]  # older exports say nothing, and mean auto_gptq
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, quantization))
    for module, case in modules.items():
        np.testing.assert_array_equal(checkpoint.read(f"{module}.weight").dequantize().astype(np.float16), GOLDEN[f"{case}.weight"])


@pytest.mark.parametrize(("change", "parts"), [
    ({"packing_format": "auto_round:llm_compressor"}, ["llm_compressor"]), ({"packing_format": "auto_round:fp8_static"}, ["fp8_static"]),
    ({"packing_format": 3}, ["packing_format"]), ({"data_type": "mx_fp"}, ["mx_fp", "only integers"]), ({"act_bits": 8}, ["act_bits is '8'"]),
    ({"bits": 9}, ["2 to 8"]), ({"bits": 1}, ["bits"]), ({"rotation_config": {"a": 1}}, ["rotation_config"]), ({"super_bits": 6}, ["super_bits"]),
    ({"extra_config": []}, []), ({"extra_config": [1]}, ["extra_config"]), ({"extra_config": {".*((": {}}}, ["extra_config"]),
    ({"extra_config": {AT: {"bits": 16}}}, ["bits is '16'"]), ({"packing_format": "auto_round"}, ["qzeros", "zero point of 7"]),
    ({"packing_format": "auto_round:auto_awq"}, ["scales", "[2, 32]"])])
def test_hostile(change: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    case = "auto_gptq.4.symmetric"
    path = write(tmp_path / "m", tensors_of(case), {**config(case), **change})
    if parts:
        refused(path, *parts)
    else:
        assert open_checkpoint(path).tensors
