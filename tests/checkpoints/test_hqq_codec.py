"""HQQ checkpoints: against what HQQ itself quantizes, serializes and dequantizes (golden/make_hqq.py), and hostile ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoints import open_checkpoint

from .int_files import AT, refused, write

GOLDEN = load_file(Path(__file__).parent / "golden" / "hqq.safetensors")
CASES = sorted({name.partition(".")[0] for name in GOLDEN} - {"axis0"})
NAME = f"{AT}.weight"
CONFIG = {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}}}


def folder(path: Path, case: str, **changes: torch.Tensor | None) -> Path:
    """A folder with this case's layer; `changes` replace tensors, None removes one."""
    parts = {name.partition(".")[2]: tensor for name, tensor in GOLDEN.items() if name.startswith(f"{case}.") and not name.endswith(".weight")}
    parts |= changes
    write(path, {}, CONFIG)
    save_file({f"{AT}.{part}": tensor for part, tensor in parts.items() if tensor is not None}, path / "model.safetensors")
    return path


@pytest.mark.parametrize("case", CASES)
def test_as_hqq_dequantizes(case: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path / "m", case))
    expected, info = GOLDEN[f"{case}.weight"].numpy(), checkpoint.tensors[NAME]
    tensor = checkpoint.read(NAME)
    np.testing.assert_array_equal(tensor.dequantize(), expected)
    for rows in (slice(0, 16), slice(16, 32), slice(5, 6), slice(7, 40)):
        np.testing.assert_array_equal(checkpoint.read(NAME, rows).dequantize(), expected[rows])
    assert tensor.spec == info.spec and info.shape == (40, 64) and info.stored.startswith("hqq ")
    assert tensor.spec.scale_format == {"half": "fp16", "view": "fp16", "bf16": "bf16"}.get(case, "fp32")
    assert tensor.spec.bits == {"1": 2, "ternary": 2, "row": 4, "half": 4, "view": 4, "bf16": 3}.get(case, int(case) if case.isdigit() else 0)
    assert set(checkpoint.tensors) == {NAME, *([f"{AT}.bias"] if case == "8" else [])}
    assert tensor.codes.max() < 2 ** tensor.spec.bits
    checkpoint.release(NAME)


def test_groups_along_the_outputs(tmp_path: Path) -> None:
    error = refused(folder(tmp_path / "m", "axis0"), "model.safetensors", f"{AT}.axis", "along the outputs")
    assert "axis 1" in error.remedy


@pytest.mark.parametrize(("changes", "what"), [
    ({"scale": None}, "scale' is missing"), ({"nbits": None}, "nbits' is missing"), ({"shape": None}, "shape' is missing"), ({"packing": None}, "is missing"),
    ({"nbits": torch.tensor(7, dtype=torch.int32)}, "7 bits"), ({"nbits": torch.tensor([4], dtype=torch.int32)}, "has shape"),
    ({"nbits": torch.tensor(float("nan"))}, "nan bits"), ({"nbits": torch.tensor(3, dtype=torch.int32)}, "packed as '3bit_32'"),
    ({"group_size": torch.tensor(0, dtype=torch.int32)}, "does not divide"), ({"group_size": torch.tensor(-32, dtype=torch.int32)}, "does not divide"),
    ({"group_size": torch.tensor(48, dtype=torch.int32)}, "does not divide"), ({"group_size": torch.tensor(16, dtype=torch.int32)}, "W_q"),
    ({"shape": torch.tensor([1 << 40, 64])}, "1099511627776"), ({"shape": torch.tensor([0, 64])}, "0 x 64"), ({"shape": torch.tensor([41, 64])}, "W_q"),
    ({"shape": torch.tensor([-40, -64])}, "-40"), ({"scale": torch.ones(79, 1)}, "has shape"), ({"zero": torch.ones(80, 1).half()}, "F16"),
    ({"scale": torch.full((80, 1), torch.inf)}, "NaN or infinity"), ({"zero": torch.full((80, 1), torch.nan)}, "NaN or infinity"),
    ({"quant_zero": torch.tensor(1, dtype=torch.uint8)}, "is quantized itself"), ({"channel_wise": torch.tensor(0, dtype=torch.uint8)}, "axis"),
    ({"view_as_float": torch.tensor(1, dtype=torch.uint8)}, "of type U8"), ({"W_q": torch.zeros(40, 32)}, "of type F32"),
    ({"packing": torch.zeros(64, dtype=torch.uint8)}, "packed as"), ({"weight": torch.zeros(40, 64)}, "twice")])
def test_hostile(changes: dict[str, torch.Tensor | None], what: str, tmp_path: Path) -> None:
    refused(folder(tmp_path / "m", "4", **changes), AT, what)
