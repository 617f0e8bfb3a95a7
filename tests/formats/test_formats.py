"""Number formats: properties that all share, and bit-for-bit agreement with the libraries that define them."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

from octavo import formats
from octavo.errors import UnknownNameError
from octavo.formats import NumberFormat

ALL = list(formats.formats().values())
CODED = [f for f in ALL if f.bits <= 8 and not f.scale_only]
SMALL = {"fp8e4m3": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn), "fp8e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2)}


def every_code(number: NumberFormat) -> np.ndarray:
    if number.kind == "int":
        return np.arange(number.low, number.high + 1).astype(np.int8)
    if number.kind == "trellis":
        return np.arange(1 << number.code_bits).astype(np.uint16)
    return np.arange(1 << number.bits).astype(np.uint8)


def floats(seed: int = 0, n: int = 200_000) -> np.ndarray:
    """Values of every magnitude, both signs, and the special ones."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(n) * 10.0 ** random.uniform(-12, 6, n)
    return np.concatenate([values, [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38]]).astype(np.float32)


@pytest.mark.parametrize("number", ALL, ids=lambda f: f.token)
def test_every_format_keeps_its_own_values(number: NumberFormat) -> None:
    """encode(decode(code)) is the code: all codes of the small formats, 65,536 values of the others."""
    if number in CODED:
        codes = every_code(number)
        values = number.decode(codes)
        assert values.dtype == np.float32
        finite = np.isfinite(values)
        again = number.encode(values[finite])
        np.testing.assert_array_equal(number.decode(again), values[finite])
        assert number.low == values[finite].min() and number.high == values[finite].max()
        assert number.tiny == values[finite & (values > 0)].min()
        if number.table is not None:
            np.testing.assert_array_equal(np.array(number.table, np.float32), values)
    elif not number.scale_only:
        x = np.abs(floats(n=65_536))
        np.testing.assert_array_equal(number.encode(number.decode(number.encode(x))), number.encode(x))


@pytest.mark.parametrize("number", CODED, ids=lambda f: f.token)
def test_every_format_rounds_to_the_nearest(number: NumberFormat) -> None:
    values = np.sort(number.decode(every_code(number)))
    values = values[np.isfinite(values)].astype(np.float64)
    x = np.random.default_rng(1).uniform(number.low * 1.2, number.high * 1.2, 20_000).astype(np.float32)
    got = number.decode(number.encode(x)).astype(np.float64)
    best = np.abs(values[None, :] - x[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(got - x), best, rtol=1e-6, atol=1e-7 * number.high)


@pytest.mark.parametrize("number", [f for f in ALL if not f.scale_only], ids=lambda f: f.token)
def test_numpy_and_torch_agree_bit_for_bit(number: NumberFormat) -> None:
    x = np.clip(floats(n=5_000), -3e4, 3e4)
    here, there = number.encode(x), number.encode(torch.tensor(x))
    np.testing.assert_array_equal(here, there.numpy())
    np.testing.assert_array_equal(number.decode(here), number.decode(there).numpy())


@pytest.mark.parametrize("number", ALL, ids=lambda f: f.token)
def test_docstring_has_the_four_headings(number: NumberFormat) -> None:
    import importlib

    text = importlib.import_module(f"octavo.formats.{number.token}").__doc__ or ""
    for heading in ("What it is:", "When to choose it:", "Limits:", "Source:"):
        assert heading in text


def test_bf16_equals_ml_dtypes_and_torch() -> None:
    x = np.concatenate([floats(), np.array([np.inf, -np.inf], np.float32)])
    ours = formats.get("bf16").encode(x)
    np.testing.assert_array_equal(ours, x.astype(ml_dtypes.bfloat16).view(np.uint16))
    np.testing.assert_array_equal(ours, torch.tensor(x).bfloat16().view(torch.uint16).numpy())
    every = np.arange(1 << 16).astype(np.uint16)
    np.testing.assert_array_equal(formats.get("bf16").decode(every).view(np.uint32), every.astype(np.uint32) << 16)
    nan = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(formats.get("bf16").decode(formats.get("bf16").encode(nan))).all()


def test_fp16_equals_numpy_and_overflows_to_infinity() -> None:
    assert formats.get("fp16").encode(np.array([65504.0, 65520.0, 1e-8], np.float32)).tolist() == [65504.0, np.inf, 0.0]


@pytest.mark.parametrize("token", SMALL)
def test_fp8_equals_ml_dtypes_and_torch(token: str) -> None:
    number, (theirs, torchs) = formats.get(token), SMALL[token]
    codes = np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(number.decode(codes), codes.view(theirs).astype(np.float32))
    x = floats()
    x = np.concatenate([x[np.abs(x) <= number.high], np.array(number.decode(codes)[np.isfinite(number.decode(codes))])])
    middles = np.sort(x[-250:])
    x = np.concatenate([x, (middles[1:] + middles[:-1]) / 2])  # exact ties
    np.testing.assert_array_equal(number.encode(x), x.astype(theirs).view(np.uint8))
    np.testing.assert_array_equal(number.encode(x), torch.tensor(x).to(torchs).view(torch.uint8).numpy())


@pytest.mark.parametrize("token", SMALL)
def test_fp8_saturates_and_keeps_nan(token: str) -> None:
    number = formats.get(token)
    x = np.array([1e9, -1e9, np.inf, -np.inf, np.nan], np.float32)
    got = number.decode(number.encode(x))
    assert got[:4].tolist() == [number.high, number.low, number.high, number.low] and np.isnan(got[4])


@pytest.mark.parametrize("token", ["nf4", "fp4"])
def test_tables_equal_bitsandbytes(token: str) -> None:
    number = formats.get(token)
    table = bnb.get_4bit_type(token, device="cpu").numpy()
    np.testing.assert_allclose(np.array(number.table, np.float32), table, rtol=0, atol=1e-7 if token == "fp4" else 0)
    x = np.random.default_rng(2).uniform(-1, 1, (64, 64)).astype(np.float32)
    x[:, 0] = 1.0  # a block's largest magnitude: scale 1
    packed, state = bnb.quantize_4bit(torch.tensor(x), blocksize=64, quant_type=token)
    theirs = bnb.dequantize_4bit(packed, state).numpy()
    np.testing.assert_allclose(number.decode(number.encode(x)), theirs, atol=1e-6)


@pytest.mark.parametrize("token", ["mxfp4", "nvfp4"])
def test_e2m1_codes_equal_compressed_tensors_and_ml_dtypes(token: str) -> None:
    number = formats.get(token)
    x = np.random.default_rng(3).uniform(-7, 7, (64, 64)).astype(np.float32)
    x[0, :32] = np.arange(32) / 4 - 4  # ties
    codes = number.encode(x)
    np.testing.assert_array_equal(codes, np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15)
    packed = pack_fp4_to_uint8(torch.tensor(number.decode(codes), dtype=torch.bfloat16)).numpy()
    np.testing.assert_array_equal(number.decode(packed & 15), number.decode(codes[:, ::2]))
    np.testing.assert_array_equal(number.decode(packed >> 4), number.decode(codes[:, 1::2]))


def test_e8m0_equals_ml_dtypes() -> None:
    number, codes = formats.get("e8m0"), np.arange(256).astype(np.uint8)
    np.testing.assert_array_equal(number.decode(codes), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    np.testing.assert_array_equal(number.encode(number.decode(codes)), codes)
    assert number.decode(number.encode(np.array([1.0, 1.99, 2.0, 0.3], np.float32))).tolist() == [1.0, 1.0, 2.0, 0.25]
    assert number.encode(np.array([0.0, np.inf], np.float32)).tolist() == [0, 254]


def test_int8_rounds_half_to_even_and_never_writes_minus_128() -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 200, -200], np.float32)
    assert formats.get("int8").encode(x).tolist() == [0, 2, 0, -2, 127, -127]
    assert formats.get("int4").encode(np.array([9, -9], np.float32)).tolist() == [7, -8]


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"known: .*int8.*nf4"):
        formats.get("int9")
    assert formats.get("bfloat16").token == "bf16"
