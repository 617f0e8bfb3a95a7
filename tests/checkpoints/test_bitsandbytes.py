"""bitsandbytes against the library itself (CPU): what it quantizes is read to the bit, what is written it reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit
from safetensors.torch import load_file

from octavo.checkpoints import InexactError, WriterOptions, open_checkpoint
from octavo.checkpoints.bitsandbytes import CODEC
from octavo.errors import CheckpointError
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

from .quantized_folder import CODES, Q, reopened, write_folder

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
SHAPES = [(8, 64), (3, 576), (7, 100), (5, 3), (2, 31), (1, 1), (65, 128), (600, 33)]


def values(shape: tuple[int, int], kind: str, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {"random": x, "zeros": torch.zeros(shape), "huge": x * 1e30, "tiny": x * 1e-30, "one": torch.where(x > 2, x, torch.zeros(()))}[kind]


def four_bit(path: Path, x: torch.Tensor, kind: str = "nf4", block: int = 64, nested: bool = False, storage: torch.dtype = torch.uint8,
             changes: dict[str, torch.Tensor] | None = None) -> tuple[Path, torch.Tensor]:
    """(a folder with one weight, what the library says it stands for)."""
    packed, state = quantize_4bit(x, blocksize=block, compress_statistics=nested, quant_type=kind, quant_storage=storage)
    tensors = {f"{Q}.weight": packed} | {f"{Q}.weight.{name}": part for name, part in state.as_dict(packed=True).items()} | (changes or {})
    return write_folder(path, tensors, FOUR), dequantize_4bit(packed, state)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_the_librarys(shape: tuple[int, int], kind: str, nested: bool, tmp_path: Path) -> None:
    for block in (64, 4096):
        for numbers in ("random", "zeros", "one", "tiny"):
            path, expected = four_bit(tmp_path / f"{block}{numbers}", values(shape, numbers), kind, block, nested)
            checkpoint = open_checkpoint(path)
            assert checkpoint.codec == "bitsandbytes" and list(checkpoint.tensors) == [f"{Q}.weight"]
            tensor = checkpoint.read(f"{Q}.weight")
            assert tensor.shape == shape and tensor.spec == checkpoint.tensors[f"{Q}.weight"].spec
            assert np.array_equal(tensor.dequantize(), expected.numpy())
            for first, last in ((0, 1), (shape[0] // 2, shape[0]), (shape[0] - 1, shape[0])):
                assert np.array_equal(checkpoint.read(f"{Q}.weight", slice(first, last)).dequantize(), expected.numpy()[first:last])


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32, torch.int8])
def test_bytes_stored_as_another_type(storage: torch.dtype, tmp_path: Path) -> None:
    path, expected = four_bit(tmp_path, values((16, 64), "random"), storage=storage)
    assert np.array_equal(open_checkpoint(path).read(f"{Q}.weight").dequantize(), expected.numpy())


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8(threshold: float, tmp_path: Path) -> None:
    for i, kind in enumerate(("random", "zeros", "one")):
        x = values((9, 70), kind).half()
        x[0, 0] = 1  # a row of zeros divides by zero in the library
        x[1:, 0] += 0.01
        codes, largest, _ = int8_vectorwise_quant(x)
        tensors = {f"{Q}.weight": codes, f"{Q}.SCB": largest, f"{Q}.weight_format": torch.tensor(0, dtype=torch.uint8)}
        checkpoint = open_checkpoint(write_folder(tmp_path / str(i), tensors, {**EIGHT, "llm_int8_threshold": threshold}))
        tensor = checkpoint.read(f"{Q}.weight")
        assert np.array_equal(tensor.codes, codes.numpy())
        # The library multiplies by the magnitude first and by 1/127 then: the same up to the last bit of float32.
        np.testing.assert_allclose(tensor.dequantize(), int8_vectorwise_dequant(codes, largest).numpy(), rtol=3e-7)
        activation = checkpoint.tensors[f"{Q}.weight"].activation
        assert (activation is None and checkpoint.notes) if threshold else (activation is not None and activation.granularity == "token")
        again = reopened(checkpoint, CODEC, tmp_path / f"{i}again")
        assert again.tensors[f"{Q}.weight"].activation == activation
        assert np.array_equal(again.read(f"{Q}.weight").dequantize(), tensor.dequantize())
        assert all(torch.equal(a, load_file(again.path / "model.safetensors")[name]) for name, a in tensors.items() if name != f"{Q}.SCB")


def test_a_config_without_quant_method(tmp_path: Path) -> None:
    path, expected = four_bit(tmp_path, values((4, 64), "random"))
    (path / "config.json").write_text(json.dumps({"quantization_config": {"load_in_4bit": True, "_load_in_4bit": True}}))
    assert np.array_equal(open_checkpoint(path).read(f"{Q}.weight").dequantize(), expected.numpy())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize(("shape", "block"), [((8, 64), 64), ((3, 576), 64), ((1100, 128), 128), ((4, 4096), 4096), ((5, 96), 32), ((7, 100), 64), ((5, 3), 64),
                                              ((600, 33), 64), ((1, 1), 64)])
def test_round_trip_is_byte_exact(shape: tuple[int, int], block: int, kind: str, tmp_path: Path) -> None:
    path, expected = four_bit(tmp_path / "a", values(shape, "random"), kind, block)
    again = reopened(open_checkpoint(path), CODEC, tmp_path / "b", config={"torch_dtype": "float32"})
    before, after = (load_file(folder / "model.safetensors") for folder in (path, again.path))
    assert sorted(before) == sorted(after)
    for name, tensor in before.items():
        if "quant_state" in name:
            assert json.loads(bytes(tensor.tolist())) == json.loads(bytes(after[name].tolist()))
        else:
            assert torch.equal(tensor, after[name]), name
    assert np.array_equal(again.read(f"{Q}.weight").dequantize(), expected.numpy())


def test_scales_that_follow_no_blocks_are_not_exact(tmp_path: Path) -> None:
    path, _ = four_bit(tmp_path / "a", values((8, 100), "random"), block=32)  # groups of 4, which blocks of 64 need not hold
    with pytest.raises(InexactError, match="do not follow blocks of 64"):
        reopened(open_checkpoint(path), CODEC, tmp_path / "b")


def test_numbers_are_rounded_in_one_run_where_rows_do_not_divide(tmp_path: Path) -> None:
    x = values((600, 100), "random").numpy()
    name, spec = f"{Q}.weight", TensorSpec("fp32")
    writer = CODEC.writer(WriterOptions("nf4"))
    assert writer.nearest(name, spec, x.shape) == spec
    arrays = {part: np.zeros(p.shape, CODES[p.dtype]) for part, p in writer.parts(name, spec, x.shape).items()}
    for first in (0, 512):
        writer.fill(name, QTensor(x[first : first + 512], None, spec, x[first : first + 512].shape), first, arrays)
    path = write_folder(tmp_path, {part: torch.from_numpy(array) for part, array in arrays.items()}, FOUR)
    _, expected = four_bit(tmp_path / "theirs", torch.from_numpy(x))
    error, theirs = (np.square(values - x).mean() for values in (open_checkpoint(path).read(name).dequantize(), expected.numpy()))
    assert error <= theirs * 1.001


def test_double_quantization_keeps_its_numbers_when_written(tmp_path: Path) -> None:
    path, expected = four_bit(tmp_path / "a", values((40, 576), "random"), nested=True)
    again = reopened(open_checkpoint(path), CODEC, tmp_path / "b")
    assert np.array_equal(again.read(f"{Q}.weight").dequantize(), expected.numpy())


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path, expected = four_bit(tmp_path / "a", values((1100, 64), "random"))
    tensors = load_file(reopened(open_checkpoint(path), CODEC, tmp_path / "b").path / "model.safetensors")
    weight = tensors.pop(f"{Q}.weight")
    state = QuantState.from_dict({name.removeprefix(f"{Q}.weight."): part for name, part in tensors.items()}, torch.device("cpu"))
    assert torch.equal(dequantize_4bit(weight, state).float(), expected.bfloat16().float())
    linear = bnb.nn.Params4bit.from_prequantized(weight, {n.removeprefix(f"{Q}.weight."): p for n, p in tensors.items()}, device="cpu")
    assert linear.quant_state.shape == torch.Size([1100, 64])


U8 = torch.uint8
HOSTILE: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "map": ({"quant_map": torch.linspace(-1, 1, 16)}, "quant_map' does not hold the values of nf4"),
    "map size": ({"quant_map": torch.zeros(15)}, r"quant_map' has shape \[15\]"),
    "absmax": ({"absmax": torch.zeros(7)}, r"absmax' has shape \[7\], expected \[8\]"),
    "absmax type": ({"absmax": torch.zeros(8, dtype=U8)}, "absmax' is of type U8"),
    "NaN": ({"absmax": torch.full((8,), torch.nan)}, "weight' holds NaN or infinity"),
    "JSON": ({"quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=U8)}, "quant_state.bitsandbytes__nf4': is not JSON"),
}
STATES: dict[str, tuple[dict[str, Any], str]] = {
    "block": ({"blocksize": 0}, "says blocksize '0'"), "block text": ({"blocksize": "64"}, "says blocksize"), "huge": ({"blocksize": 1 << 40}, "blocksize"),
    "shape": ({"shape": [8, 65]}, "has 256 bytes, 8 x 65 values of 4 bits need 260"), "cube": ({"shape": [2, 4, 64]}, "not that of a matrix"),
    "negative": ({"shape": [-8, -64]}, "not that of a matrix"), "bool": ({"shape": [True, 512]}, "not that of a matrix"),
    "type": ({"quant_type": "fp4"}, "says quant_type 'fp4'"), "vast": ({"shape": [1 << 30, 1 << 30]}, "has 256 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_parts(case: str, tmp_path: Path) -> None:
    changes, message = HOSTILE[case]
    path, _ = four_bit(tmp_path, values((8, 64), "random"), changes={f"{Q}.weight.{name}": part for name, part in changes.items()})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{Q}.*{message}"):
        open_checkpoint(path).read(f"{Q}.weight")


@pytest.mark.parametrize("case", STATES)
def test_broken_states(case: str, tmp_path: Path) -> None:
    changes, message = STATES[case]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 64]} | changes
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=U8)
    path, _ = four_bit(tmp_path, values((8, 64), "random"), changes={f"{Q}.weight.quant_state.bitsandbytes__nf4": packed})
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).count("\n") == 0 and "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("missing", ["absmax", "quant_map", "nested_quant_map", "quant_state.bitsandbytes__nf4"])
def test_missing_parts(missing: str, tmp_path: Path) -> None:
    path, _ = four_bit(tmp_path, values((8, 64), "random"), nested=True)
    tensors = load_file(path / "model.safetensors")
    del tensors[f"{Q}.weight.{missing}"]
    write_folder(path, tensors, FOUR)
    with pytest.raises(CheckpointError, match=r"is missing|is quantized, but no scales"):
        open_checkpoint(path)


def test_int8_without_scales_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path, {f"{Q}.weight": torch.ones(4, 4, dtype=torch.int8)}, EIGHT)
    with pytest.raises(CheckpointError, match=rf"tensor '{Q}\.weight' of type I8 is quantized, but no scales"):
        open_checkpoint(path)
    path = write_folder(tmp_path, {f"{Q}.weight": torch.ones(4, 4, dtype=torch.int8), f"{Q}.SCB": torch.ones(4),
                                   f"{Q}.weight_format": torch.tensor(2, dtype=U8)}, EIGHT)
    with pytest.raises(CheckpointError, match="lie in tiles"):
        open_checkpoint(path)
