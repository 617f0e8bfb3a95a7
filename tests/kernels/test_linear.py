"""Linear kernels of every instruction set against float64, on random and hostile numbers; and the packed layout they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import _native, layouts, qtensor, schemes
from octavo.errors import KernelError
from octavo.kernels.native import NativeWeight
from octavo.schemes import TensorSpec

ISAS = _native.available_isas()
INT8 = TensorSpec("int8", "token", dynamic=True)
SPECS = {
    "fp32": TensorSpec("fp32"),
    "fp16": TensorSpec("fp16"),
    "bf16": TensorSpec("bf16"),
    "int8 channel": TensorSpec("int8", "channel"),
    "int8 tensor": TensorSpec("int8", "tensor"),
    "int8 g64": TensorSpec("int8", "group", 64, scale_format="fp16"),
    "int8 g128 zeros bf16": TensorSpec("int8", "group", 128, symmetric=False, scale_format="bf16"),
    "int8 block": TensorSpec("int8", "block", 32, 64),
    "int4 g32": TensorSpec("int4", "group", 32, scale_format="fp16"),
    "int4 g64": TensorSpec("int4", "group", 64, scale_format="fp16"),
    "int4 g96": TensorSpec("int4", "group", 96, scale_format="fp32"),
    "int4 g32 zeros": TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16"),
    "int4 channel": TensorSpec("int4", "channel"),
    "int3 g64": TensorSpec("int3", "group", 64, scale_format="fp16"),
    "int6 g64": TensorSpec("int6", "group", 64, scale_format="fp16"),
    "nf4 g64": TensorSpec("nf4", "group", 64, scale_format="fp16"),
    "fp4 g64": TensorSpec("fp4", "group", 64, scale_format="fp16"),
    "mxfp4": schemes.parse("Wmxfp4").weight,
}
FLOATS_ONLY = {  # which int8 activations do not meet
    "int6 g16": TensorSpec("int6", "group", 16),
    "int3 g16": TensorSpec("int3", "group", 16),
    "int2 g16 zeros": TensorSpec("int2", "group", 16, symmetric=False),
    "int5 g48 zeros": TensorSpec("int5", "group", 48, symmetric=False),
    "int4 g4": TensorSpec("int4", "group", 4, scale_format="fp16"),
    "int8 block 16": TensorSpec("int8", "block", 8, 16),
    "nvfp4": schemes.parse("Wnvfp4").weight,
    "fp8e4m3 channel": TensorSpec("fp8e4m3", "channel"),
    "fp8e4m3 tensor": TensorSpec("fp8e4m3", "tensor"),
    "fp8e4m3 g64": TensorSpec("fp8e4m3", "group", 64, scale_format="bf16"),
    "fp8e4m3 block": TensorSpec("fp8e4m3", "block", 128, 128),
    "fp8e5m2 channel": TensorSpec("fp8e5m2", "channel"),
    "fp8e5m2 g20": TensorSpec("fp8e5m2", "group", 20),
    "mxfp8": schemes.parse("Wmxfp8").weight,
}
ALL_SPECS = {**SPECS, **FLOATS_ONLY}
SHAPES = [(64, 576), (17, 31), (1, 1), (40, 1536), (16, 130), (33, 2112)]


PAIRS = "pairs of two panels"
ROW = 1 << 24  # one scale of int8 activations for a whole row


def multiply(packed: layouts.Packed, x: np.ndarray, isa: str, group: int, kernel: str = "") -> np.ndarray:
    """group: of int8 activations, 0 for float ones."""
    y = np.full((len(x), packed.meta.n), 7, np.float32)
    _native.linear_once(NativeWeight(packed, INT8).native, np.ascontiguousarray(x), y, isa, group, kernel=kernel)
    return y


def special(isa: str, packed: layouts.Packed, group: int, rows: int) -> list[str]:
    """The kernels beside the first one that take this problem: beside the general one, except where pairs of bfloat16 are multiplied."""
    weight = NativeWeight(packed, INT8).native
    found = [name for name in _native.linear_kernels(isa) if _native.linear_supported(weight, isa, group, rows, name)]
    assert (found[0] == "general") != in_pairs(isa, packed, group)
    return found[1:]


def first(isa: str, packed: layouts.Packed, group: int) -> str:
    """The kernel whose bits the others have."""
    return PAIRS if in_pairs(isa, packed, group) else "general"


def in_pairs(isa: str, packed: layouts.Packed, group: int) -> bool:
    """Whether float activations are rounded to bfloat16 (csrc/avx512bf16/pair_linear.inl.h)."""
    exact = packed.meta.store not in ("f32", "trellis") and packed.meta.spec.format not in ("nf4", "fp4")  # whose numbers need more bits than bfloat16 has
    expected = isa == "avx512bf16" and exact and (group == 0 or not packed.meta.store.startswith("codes"))
    if isa == "avx512bf16":
        assert _native.linear_supported(NativeWeight(packed, INT8).native, isa, group, 5, PAIRS) == expected
    return expected


def in_bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).bfloat16().float().numpy()


def rounded(x: np.ndarray, group: int = ROW) -> np.ndarray:
    """x as int8 with a scale per row or group, in float64: what the kernels do to activations."""
    parts = []
    for part in np.split(x, range(group, x.shape[1], group), axis=1):
        top = np.abs(part).max(axis=1, keepdims=True)
        inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
        parts.append(np.rint(part * inverse).astype(np.float64) * (top / np.float32(127)).astype(np.float64))
    return np.concatenate(parts, axis=1)


def tolerance(spec: TensorSpec, quantized: bool) -> float:
    return 8e-3 if quantized and spec.format in ("nf4", "fp4") else 3e-6  # tables of signed bytes: csrc/bind.cpp round_table


@pytest.mark.parametrize("group", [0, 64])
@pytest.mark.parametrize("name", ["bf16", "int8 g64", "int4 g64", "nf4 g64"])
@pytest.mark.parametrize("isa", ISAS)
def test_no_rows_write_nothing(isa: str, name: str, group: int) -> None:
    packed = layouts.pack(qtensor.quantize(np.ones((64, 64), np.float32), SPECS[name]))
    weight, x, y = NativeWeight(packed, INT8).native, np.ones((8, 64), np.float32), np.full((8, 64), 7, np.float32)
    for kernel in _native.linear_kernels(isa):
        if _native.linear_supported(weight, isa, group, 0, kernel):
            _native.linear_once(weight, x[:0], y[:0], isa, group, kernel=kernel)
    assert (y == 7).all()


@pytest.mark.parametrize("group", [0, ROW, 64, 32], ids=["float", "int8", "int8 g64", "int8 g32"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("isa", ISAS)
def test_against_float64(isa: str, name: str, group: int) -> None:
    against_float64(isa, SPECS[name], group)


@pytest.mark.parametrize("name", FLOATS_ONLY)
@pytest.mark.parametrize("isa", ISAS)
def test_precisions_of_float_activations_only(isa: str, name: str) -> None:
    against_float64(isa, FLOATS_ONLY[name], 0)
    packed = layouts.pack(qtensor.quantize(np.ones((3, 70), np.float32), FLOATS_ONLY[name]))
    if packed.meta.store.startswith("codes"):
        with pytest.raises(ValueError, match="does not support"):
            multiply(packed, np.ones((2, 70), np.float32), isa, ROW)
    else:  # no integers to meet: floats, as for weights of 16 bits
        x = np.random.default_rng(0).standard_normal((2, 70)).astype(np.float32)
        assert NativeWeight(packed, INT8).group == 0
        assert np.array_equal(multiply(packed, x, isa, 0), multiply(packed, x, isa, 0, first(isa, packed, 0)))


def against_float64(isa: str, spec: TensorSpec, group: int) -> None:
    for seed, (n, k) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        q = qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32), spec)
        packed, values = layouts.pack(q), q.dequantize().astype(np.float64)
        integer = group > 0 and packed.meta.store.startswith("codes")
        x = rng.standard_normal((131, k)).astype(np.float32)
        met = rounded(x, group) if integer else (in_bf16(x) if in_pairs(isa, packed, group) else x).astype(np.float64)
        expected = met @ values.T
        y = multiply(packed, x, isa, group)
        scale = (np.abs(met) @ np.abs(values).T).max()
        assert np.abs(y - expected).max() <= tolerance(spec, integer) * scale
        for rows in ([5], [0, 130], list(range(10, 23)), list(range(64, 131))):  # alone or in company: the same bits
            assert np.array_equal(multiply(packed, x[rows], isa, group), y[rows])


@pytest.mark.parametrize("group", [0, ROW, 128, 64, 32], ids=["float", "int8", "int8 g128", "int8 g64", "int8 g32"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("isa", ISAS)
def test_all_kernels_of_an_instruction_set_give_the_same_bits(isa: str, name: str, group: int) -> None:
    same_bits(isa, SPECS[name], group)


@pytest.mark.parametrize("name", FLOATS_ONLY)
@pytest.mark.parametrize("isa", ISAS)
def test_and_so_do_those_of_floats_only(isa: str, name: str) -> None:
    same_bits(isa, FLOATS_ONLY[name], 0)


def same_bits(isa: str, spec: TensorSpec, group: int) -> None:
    for seed, (n, k) in enumerate([(64, 576), (17, 31), (40, 1536), (33, 2112)]):
        rng = np.random.default_rng(seed)
        packed = layouts.pack(qtensor.quantize(rng.standard_normal((n, k)).astype(np.float32), spec))
        x = rng.standard_normal((263, k)).astype(np.float32) * np.float32(10.0) ** rng.integers(-6, 6, (263, 1))
        x[5], x[7, 3], x[9, k // 2], x[11, :: 2] = 0, np.nan, np.inf, -1e30
        for rows in [*range(1, 14), 31, 263]:
            for kernel in special(isa, packed, group, rows):
                expected = multiply(packed, x[:rows], isa, group, first(isa, packed, group))
                assert np.array_equal(multiply(packed, x[:rows], isa, group, kernel), expected, equal_nan=True), (kernel, n, k, rows)


@pytest.mark.skipif("avx512bf16" not in ISAS, reason="for CPUs that multiply pairs of bfloat16")
@pytest.mark.parametrize("k", [1, 2, 3, 31, 255, 256, 257, 515, 33001])
def test_pairs_of_any_length(k: int) -> None:
    """Rows that end with half a pair or a chunk, and one too long for the kernel, which the general one takes with floats."""
    rng = np.random.default_rng(k)
    packed = layouts.pack(qtensor.quantize(rng.standard_normal((40, k)).astype(np.float32), SPECS["bf16"]))
    weight, values = NativeWeight(packed, INT8).native, layouts.unpack(packed).dequantize().astype(np.float64)
    assert _native.linear_supported(weight, "avx512bf16", 0, 3, "general") == (k > 2**15)
    x = rng.standard_normal((130, k)).astype(np.float32)
    y = multiply(packed, x, "avx512bf16", 0)
    expected = (x if k > 2**15 else in_bf16(x)).astype(np.float64) @ values.T
    assert np.abs(y - expected).max() <= 3e-6 * (np.abs(x) @ np.abs(values).T).max()
    assert all(np.array_equal(multiply(packed, x[r : r + 1], "avx512bf16", 0), y[r : r + 1]) for r in (0, 7, 129))


@pytest.mark.skipif("avx512bf16" not in ISAS, reason="for CPUs that multiply pairs of bfloat16")
def test_pairs_of_extremes() -> None:
    """Rounding ties to even, up to infinity, and numbers too small for bfloat16 to zero, as numbers of tensors in bfloat16 do elsewhere."""
    k = 64
    packed = layouts.pack(qtensor.quantize(np.eye(k, dtype=np.float32), SPECS["bf16"]))
    x = np.zeros((3, k), np.float32)
    x[0, :6] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 1e-39, 2**-126, 3.38e38]
    x[1, 0] = 3.4e38
    y = multiply(packed, x, "avx512bf16", 0)
    assert y[0, :5].tolist() == [1.0, 1 + 2**-6, -1.0, 0, 2**-126] and 3.37e38 < y[0, 5] < 3.39e38
    assert y[1, 0] == np.inf and np.isnan(y[1, 1:]).all()  # infinity times zero
    assert not y[2].any()


def test_the_presets_have_kernels_of_their_own_on_avx2() -> None:
    if "avx2" not in ISAS:
        pytest.fail("these tests need a CPU with AVX2")
    rng = np.random.default_rng(0)
    for name, kernel in (("int4 g64", "shorts"), ("int8 g64", "wide")):
        packed = layouts.pack(qtensor.quantize(rng.standard_normal((64, 576)).astype(np.float32), SPECS[name]))
        assert special("avx2", packed, 64, 16) == [kernel, "few"] and special("avx2", packed, 0, 16) == ["floats"]
    with pytest.raises(ValueError, match="no kernel nonsense"):
        multiply(packed, np.ones((2, 576), np.float32), "avx2", 64, "nonsense")
    with pytest.raises(ValueError, match="does not support"):
        multiply(packed, np.ones((2, 576), np.float32), "avx2", 64, "shorts")


@pytest.mark.parametrize("name", ["int8 channel", "int8 g64", "int4 g64", "int4 g32 zeros", "nf4 g64"])
def test_integer_paths_agree_between_instruction_sets(name: str) -> None:
    rng = np.random.default_rng(1)
    packed = layouts.pack(qtensor.quantize(rng.standard_normal((48, 640)).astype(np.float32), SPECS[name]))
    x = rng.standard_normal((9, 640)).astype(np.float32)
    results = [multiply(packed, x, isa, ROW) for isa in ISAS]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_extremes_do_not_saturate(isa: str) -> None:
    """Every product at its largest, over a long K, with codes down to -128."""
    n, k = 32, 4096
    for code in (-128, -127, 127):
        q = qtensor.QTensor(np.full((n, k), code, np.int8), np.ones((n, 1), np.float32), TensorSpec("int8", "channel"), (n, k))
        x = np.full((5, k), 1.0, np.float32)
        x[1] = -1
        x[2, ::2] = -1
        expected = rounded(x) @ np.full((k, n), float(code))
        packed = layouts.pack(q)
        for kernel in ("general", *special(isa, packed, 64, 5)):
            np.testing.assert_allclose(multiply(packed, x, isa, ROW if kernel == "general" else 64, kernel), expected, rtol=1e-6, atol=1e-2)
    low = qtensor.QTensor(np.full((n, k), 15, np.uint8), np.ones((n, k // 64), np.float32), TensorSpec("int4", "group", 64, symmetric=False), (n, k),
                          zeros=np.zeros((n, k // 64), np.float32))
    packed = layouts.pack(low)
    for kernel in ("general", *special(isa, packed, 64, 5)):
        for sign in (1, -1):
            x = np.full((7, k), sign, np.float32)
            np.testing.assert_allclose(multiply(packed, x, isa, ROW if kernel == "general" else 64, kernel), sign * 15.0 * k, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["int8 channel", "int4 g64", "nf4 g64", "bf16"])
def test_nan_and_infinity_stay_in_their_row(isa: str, name: str) -> None:
    packed = layouts.pack(qtensor.quantize(np.random.default_rng(2).standard_normal((20, 200)).astype(np.float32), SPECS[name]))
    x = np.ones((6, 200), np.float32)
    x[1, 3], x[4, 199] = np.nan, np.inf
    y = multiply(packed, x, isa, ROW)
    assert np.isnan(y[1]).all() and not np.isfinite(y[4]).any()
    assert np.isfinite(y[[0, 2, 3, 5]]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_zero_rows_and_zero_weights(isa: str) -> None:
    for name in ("int8 channel", "int4 g64", "fp32"):
        packed = layouts.pack(qtensor.quantize(np.zeros((19, 70), np.float32), SPECS[name]))
        assert not multiply(packed, np.ones((3, 70), np.float32), isa, ROW).any()
        dense = layouts.pack(qtensor.quantize(np.ones((19, 70), np.float32), SPECS[name]))
        assert not multiply(dense, np.zeros((3, 70), np.float32), isa, ROW).any()


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(ALL_SPECS)), n=st.integers(1, 70), k=st.integers(1, 200), seed=st.integers(0, 99))
def test_unpack_is_the_inverse_of_pack(name: str, n: int, k: int, seed: int) -> None:
    q = qtensor.quantize(np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32), ALL_SPECS[name])
    packed = layouts.pack(q)
    assert np.array_equal(layouts.unpack(packed).dequantize(), q.dequantize())
    assert packed.blob.nbytes == packed.meta.nbytes and packed.blob.ctypes.data % 64 == 0
    back = layouts.unpack(packed)
    assert np.array_equal(back.codes, q.codes) and back.codes.dtype == q.codes.dtype and back.spec == q.spec
    if q.scales is not None:
        assert np.array_equal(back.scales * (1 if back.outer is None else back.outer), q.scales * (1 if q.outer is None else q.outer))
        assert (q.zeros is None) == (back.zeros is None)
        if q.zeros is not None:
            assert np.array_equal(back.zeros, q.zeros)
    part = layouts.unpack(packed, slice(n // 32 * 16, n))
    assert np.array_equal(part.codes, q.codes[n // 32 * 16 :])
    assert layouts.PackedMeta.from_json(packed.meta.to_json()) == packed.meta


def test_packing_by_pieces_is_packing_the_whole() -> None:
    x = np.random.default_rng(3).standard_normal((100, 96)).astype(np.float32)
    for name in ("int8 channel", "int4 g32 zeros", "bf16"):
        whole = layouts.pack(qtensor.quantize(x, SPECS[name]))
        pieces = layouts.Packed(layouts.aligned(whole.meta.nbytes), whole.meta)
        for row in range(0, 100, 48):
            layouts.pack_rows(pieces, row, qtensor.quantize(x[row : row + 48], SPECS[name]))
        assert np.array_equal(pieces.blob, whole.blob)


def test_offsets_become_zeros() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(1, 64) % 16
    spec = TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp32")
    q = qtensor.QTensor(codes, np.array([[0.5, 0.25]], np.float32), spec, (1, 64), offsets=np.array([[-2.0, 1.0]], np.float32))
    assert np.array_equal(layouts.unpack(layouts.pack(q)).dequantize(), q.dequantize())


@pytest.mark.parametrize("format", ["int4", "int5", "int8"])
@pytest.mark.parametrize("scale_format", ["fp32", "fp16"])
def test_offsets_without_a_scale_are_exact(format: str, scale_format: str) -> None:
    """GGUF's Q2_K and Q4_1 store such groups: every number in them is the offset. Where float16 does not hold it, float32 does."""
    spec = TensorSpec(format, "group", 32, symmetric=False, scale_format=scale_format)
    codes = np.arange(96, dtype=np.uint8).reshape(1, 96) % 16
    for offset in (1.0, -0.125, 0.1, 1e-30, 3e38, 0.0):
        q = qtensor.QTensor(codes, np.array([[0, 0.5, 1e-45]], np.float32), spec, (1, 96), offsets=np.array([[offset, -2, 3e38]], np.float32))
        packed = layouts.pack(q)
        assert np.array_equal(layouts.unpack(packed).dequantize(), q.dequantize())
        y = multiply(packed, np.eye(96, dtype=np.float32), "portable", 0)
        assert np.array_equal(y[:, 0], q.dequantize()[0])


def test_codes_that_are_no_numbers_are_refused() -> None:
    for format, bad in (("fp8e4m3", 0x7F), ("fp8e4m3", 0xFF), ("fp8e5m2", 0x7C), ("fp8e5m2", 0xFE)):
        codes = np.zeros((2, 40), np.uint8)
        codes[1, 3] = bad
        with pytest.raises(KernelError, match="NaN or infinity"):
            layouts.pack(qtensor.QTensor(codes, np.ones((2, 1), np.float32), TensorSpec(format, "channel"), (2, 40)))
    one = np.ones((1, 1), np.float32)
    offsets = qtensor.QTensor(np.zeros((1, 32), np.int8), one, TensorSpec("int4", "group", 32), (1, 32), offsets=one)
    with pytest.raises(KernelError, match="neither zero points nor offsets"):
        layouts.pack(offsets)


@pytest.mark.parametrize("format", ["fp8e4m3", "fp8e5m2"])
@pytest.mark.parametrize("isa", ISAS)
def test_every_code_of_a_small_float_is_its_number(isa: str, format: str) -> None:
    most = layouts.NOT_FINITE[layouts.SMALL_FLOATS[format]]
    codes = np.array([code for code in range(256) if code & 0x7F < most], np.uint8).reshape(1, -1)
    k = codes.shape[1]
    for scale in (1.0, 2.0**-20, 0.3, 2.0**100):
        q = qtensor.QTensor(codes, np.full((1, 1), scale, np.float32), TensorSpec(format, "channel"), (1, k))
        y = multiply(layouts.pack(q), np.eye(k, dtype=np.float32), isa, 0)
        assert np.array_equal(y[:, 0], q.dequantize()[0])


def test_scales_that_a_type_does_not_hold_are_kept_wide() -> None:
    spec = TensorSpec("int4", "group", 32, scale_format="bf16")
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (20, 64)).astype(np.int8)
    for scales, kept in ((np.full((20, 2), 2.0**-90), "bf16"), (np.full((20, 2), 0.1), "fp32")):
        packed = layouts.pack(qtensor.QTensor(codes, scales.astype(np.float32), spec, (20, 64)))
        assert packed.meta.scale_type == kept and packed.meta.spec.scale_format == kept
        assert np.array_equal(layouts.unpack(packed).scales, scales.astype(np.float32))


def test_bits_in_memory() -> None:
    for name, bits in (("mxfp4", 4.5), ("mxfp8", 8.5), ("fp8e4m3 block", 8.25), ("nvfp4", 6), ("int6 g16", 10), ("int3 g16", 6), ("int2 g16 zeros", 8)):
        assert 8 * layouts.describe(ALL_SPECS[name], 4096, 4096).nbytes / 4096**2 == bits, name


def test_refusals_say_why() -> None:
    assert "multiples of 4, not 6" in str(layouts.why_not(TensorSpec("int4", "group", 6, scale_format="fp16")))
    assert "multiple of 4, not 6" in str(layouts.why_not(TensorSpec("fp8e4m3", "block", 6, 6)))
