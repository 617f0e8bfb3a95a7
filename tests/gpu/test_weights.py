"""Weights as the GPU kernels read them, and the PTX that takes packed codes apart, on every byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu import ptx
from octavo import formats, qtensor, schemes
from octavo.errors import KernelError
from octavo.kernels.op import Problem
from octavo.kernels.triton import _nibbles, embed, linear_fp8
from octavo.kernels.triton.weights import linear, prepare, supports, unpacked
from octavo.schemes import TensorSpec

FLOATS = TensorSpec("fp32")
SPECS = {
    "fp32": TensorSpec("fp32"),
    "fp16": TensorSpec("fp16"),
    "bf16": TensorSpec("bf16"),
    "int8 channel": TensorSpec("int8", "channel"),
    "int8 tensor": TensorSpec("int8", "tensor"),
    "int8 g32": TensorSpec("int8", "group", 32, scale_format="fp16"),
    "int8 g128 zeros bf16": TensorSpec("int8", "group", 128, symmetric=False, scale_format="bf16"),
    "int8 block": TensorSpec("int8", "block", 32, 64),
    "int6 g16": TensorSpec("int6", "group", 16),
    "int5 g32 zeros": TensorSpec("int5", "group", 32, symmetric=False, scale_format="fp16"),
    "int4 channel": TensorSpec("int4", "channel"),
    "int4 g128": TensorSpec("int4", "group", 128, scale_format="fp16"),
    "int4 g64 zeros": TensorSpec("int4", "group", 64, symmetric=False, scale_format="fp16"),
    "int4 g32": TensorSpec("int4", "group", 32, scale_format="fp16"),
    "int4 g32 zeros": TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16"),
    "int4 g96": TensorSpec("int4", "group", 96, scale_format="fp32"),
    "int4 g4": TensorSpec("int4", "group", 4, scale_format="fp16"),
    "int3 g64": TensorSpec("int3", "group", 64, scale_format="fp16"),
    "int3 g16": TensorSpec("int3", "group", 16),
    "int2 g64": TensorSpec("int2", "group", 64, scale_format="fp16"),
    "int2 g16 zeros": TensorSpec("int2", "group", 16, symmetric=False),
    "nf4 g64": TensorSpec("nf4", "group", 64, scale_format="fp16"),
    "fp4 g64": TensorSpec("fp4", "group", 64, scale_format="fp16"),
    "iq4nl": TensorSpec("iq4nl", "group", 32, scale_format="fp16"),
    "mxfp4": schemes.parse("Wmxfp4").weight,
    "nvfp4": schemes.parse("Wnvfp4").weight,
    "fp8e4m3 channel": TensorSpec("fp8e4m3", "channel"),
    "fp8e4m3 block": TensorSpec("fp8e4m3", "block", 128, 128),
    "fp8e5m2 g20": TensorSpec("fp8e5m2", "group", 20),
    "mxfp8": schemes.parse("Wmxfp8").weight,
}


def weight_of(name: str, n: int, k: int, seed: int = 0, activation: TensorSpec = FLOATS) -> tuple:
    """(QTensor, GpuWeight) of random numbers."""
    q = qtensor.quantize(np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32), SPECS[name])
    return q, prepare(q, activation)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_packed_is_the_tensor(name: str) -> None:
    for n, k in ((5, 200), (1, 1), (16, 64)):
        q, weight = weight_of(name, n, k)
        got, expected = unpacked(weight).numpy(), q.dequantize()
        error = 2.0**-8 if name.startswith(("nf4", "fp4")) else 1e-6  # tables are what bfloat16 holds
        np.testing.assert_allclose(got, expected, rtol=error, atol=1e-6 * np.abs(expected).max())
        assert weight.codes.shape[1] * 8 % weight.bits == 0 and weight.nbytes >= weight.codes.nbytes


def test_bytes_of_the_usual_precisions() -> None:
    for name, bits in (("int4 g128", 4.125), ("int4 g64 zeros", 4.75), ("mxfp4", 4.25), ("nvfp4", 5.0), ("fp8e4m3 channel", 8.0625), ("int2 g64", 2.25)):
        _, weight = weight_of(name, 128, 512)
        assert 8 * (weight.nbytes - (0 if weight.table is None else 64)) / (128 * 512) == bits, name


def test_groups_of_zeros_have_the_smallest_exponent() -> None:
    x = np.random.default_rng(0).standard_normal((6, 128)).astype(np.float32)
    x[2, 32:64] = 0
    q = qtensor.quantize(x, SPECS["mxfp4"])
    weight = prepare(q, FLOATS)
    assert weight.scales is not None and weight.scales.dtype == torch.uint8 and weight.scales[1, 2] == 0
    assert np.array_equal(unpacked(weight).numpy(), q.dequantize())
    y = linear(torch.ones(1, 128), [weight])[0]
    np.testing.assert_allclose(y[0].numpy(), q.dequantize().sum(axis=1), atol=1e-5)
    rows = torch.empty(2, 128)
    embed.embed(weight, torch.tensor([2, 5], dtype=torch.int32), rows)
    assert np.array_equal(rows.numpy(), q.dequantize()[[2, 5]])


def test_inputs_need_not_be_contiguous_nor_there() -> None:
    for name, activation in (("int4 g128", FLOATS), ("int8 channel", TensorSpec("int8", "token", dynamic=True)),
                             ("fp8e4m3 channel", TensorSpec("fp8e4m3", "token", dynamic=True))):
        weight = weight_of(name, 24, 128, 0, activation)[1]
        x, residual = torch.randn(128, 3).T, torch.randn(24, 3).T
        assert torch.equal(linear(x, [weight], residual=residual)[0], linear(x.contiguous(), [weight], residual=residual.contiguous())[0])
        wide = torch.randn(3, 200)
        assert torch.equal(linear(wide[:, 5:133], [weight])[0], linear(wide[:, 5:133].contiguous(), [weight])[0])
        assert linear(torch.empty(0, 128), [weight], narrow=True)[0].shape == (0, 24)


def test_halves_and_quarters_lie_as_documented() -> None:
    codes = (np.arange(128) % 16).astype(np.uint8)[None]
    spec = TensorSpec("int4", "channel", symmetric=False)
    q = qtensor.QTensor(codes, np.ones((1, 1), np.float32), spec, (1, 128), zeros=np.zeros((1, 1), np.float32))
    packed = prepare(q, FLOATS).codes.numpy()[0]
    assert packed[5] == codes[0, 5] | codes[0, 37] << 4 and packed[40] == codes[0, 72] | codes[0, 104] << 4
    q = qtensor.QTensor(codes % 4, np.ones((1, 1), np.float32), TensorSpec("int2", "channel", symmetric=False), (1, 128), zeros=np.zeros((1, 1), np.float32))
    packed = prepare(q, FLOATS).codes.numpy()[0]
    assert [packed[3] >> s & 3 for s in (0, 2, 4, 6)] == [codes[0, 3 + 16 * i] % 4 for i in range(4)]


EVERY = np.random.default_rng(0).permutation(np.tile(np.arange(256, dtype=np.uint8), 16)).reshape(-1, 4)  # four bytes a register


def floats(text: str, pack: int = 2) -> np.ndarray:
    """What a sequence makes of EVERY, `pack` bytes at a time."""
    source = EVERY.reshape(-1, pack).copy().view(np.uint16 if pack == 2 else np.uint32)[:, 0].astype(np.uint32)
    registers = ptx.run(text, source, pack // 2)
    halves = np.stack([part for r in registers for part in (r & 0xFFFF, r >> 16)], axis=1).astype(np.uint32)
    return (halves << 16).view(np.float32).reshape(EVERY.shape)


@pytest.mark.parametrize("part", [0, 1])
def test_assembly_of_nibbles(part: int) -> None:
    nibble = EVERY >> 4 * part & 15
    assert np.array_equal(floats(_nibbles.integers(part)) * _nibbles.INTEGERS_LOW, nibble.astype(np.float32) - 8)
    decoded = formats.get("mxfp4").decode(nibble)
    assert np.array_equal(floats(_nibbles.e2m1(part)).view(np.uint32), decoded.view(np.uint32))  # the sign of zero too
    for name in ("nf4", "fp4", "iq4nl", "mxfp4"):
        values = formats.get(name).decode(np.arange(16, dtype=np.uint8))
        expected = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
        assert np.array_equal(floats(_nibbles.table(values.tolist(), part), 4), expected[nibble])
    for codes in ([code & 0xFF for code in range(-8, 8)], list(linear_fp8.E2M1_BYTES), list(range(255, 239, -1))):
        (got,) = ptx.run(_nibbles.byte_table(codes, part), np.ascontiguousarray(EVERY).view(np.uint32)[:, 0], 1)
        assert np.array_equal(got[:, None].view(np.uint8), np.array(codes, np.uint8)[nibble])


@pytest.mark.parametrize("name", ["fp8e4m3", "fp8e5m2"])
def test_assembly_of_small_floats(name: str) -> None:
    expected = formats.get(name).decode(EVERY)
    known = np.isfinite(expected)
    assert np.array_equal(floats(_nibbles.small_float(int(name[4])))[known], expected[known])


def test_fp8_bytes_stand_for_the_numbers() -> None:
    decode = formats.get("fp8e4m3").decode
    assert decode(np.array(linear_fp8.INTEGER_BYTES, np.uint8)).tolist() == list(range(-8, 8))
    assert np.array_equal(decode(np.array(linear_fp8.E2M1_BYTES, np.uint8)), formats.get("mxfp4").decode(np.arange(16, dtype=np.uint8)))


def test_inputs_are_ordered_scaled_and_rotated_once() -> None:
    rng = np.random.default_rng(1)
    q = qtensor.quantize(rng.standard_normal((6, 128)).astype(np.float32), SPECS["int8 channel"])
    changed = qtensor.QTensor(q.codes, q.scales, q.spec, q.shape, order=rng.permutation(128).astype(np.int32),
                              factors=rng.uniform(0.5, 2, 128).astype(np.float32), rotation=32)
    x = rng.standard_normal((3, 128)).astype(np.float32)
    one, other = linear(torch.from_numpy(x), [prepare(changed, FLOATS), prepare(changed, FLOATS)])
    expected = x.astype(np.float64) @ changed.dequantize().astype(np.float64).T
    np.testing.assert_allclose(one.numpy(), expected, atol=0.02 * np.abs(expected).max())  # x is bfloat16 after the rotation
    assert torch.equal(one, other)


def test_refusals_say_why() -> None:
    def why(weight: TensorSpec, activation: TensorSpec) -> str:
        return str(supports(Problem("linear", 8, 64, weight=weight, activation=activation)))

    int8, fp8 = TensorSpec("int8", "token", dynamic=True), TensorSpec("fp8e4m3", "token", dynamic=True)
    assert why(SPECS["int4 g128"], FLOATS) == why(SPECS["int4 g32"], int8) == why(SPECS["mxfp4"], fp8) == "None"
    assert "trellis" in why(schemes.parse("Wtcq2").weight, FLOATS)
    assert "not nf4" in why(SPECS["nf4 g64"], int8)
    assert "32 columns" in why(SPECS["int4 g4"], int8) and "not nvfp4" in why(SPECS["nvfp4"], fp8)
    nvfp4 = schemes.parse("Wnvfp4Anvfp4").activation
    assert "Blackwell" in why(SPECS["nvfp4"], nvfp4) and "meet nvfp4 weights" in why(SPECS["mxfp4"], nvfp4)
    q = qtensor.quantize(np.ones((2, 64), np.float32), SPECS["nf4 g64"])
    with pytest.raises(KernelError, match="not nf4"):
        prepare(q, int8)
    with pytest.raises(KernelError, match="exactly one weight"):
        linear(torch.ones(1, 64), [prepare(q, FLOATS)] * 2, residual=torch.ones(1, 2))
