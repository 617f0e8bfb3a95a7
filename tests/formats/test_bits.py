"""Packing codes of a few bits into bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.formats import pack_bits, unpack_bits


@given(bits=st.integers(1, 8), n=st.integers(0, 70), rows=st.integers(1, 3), seed=st.integers(0, 1000))
def test_packing_is_a_little_endian_bit_string(bits: int, n: int, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, n), dtype=np.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, -(-n * bits // 8))
    for row, data in zip(codes, packed, strict=True):
        assert int.from_bytes(data.tobytes(), "little") == sum(int(c) << (i * bits) for i, c in enumerate(row))
    np.testing.assert_array_equal(unpack_bits(packed, bits, n), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_codes_keep_their_sign(bits: int) -> None:
    codes = np.arange(-(1 << (bits - 1)), 1 << (bits - 1)).astype(np.int8)
    np.testing.assert_array_equal(unpack_bits(pack_bits(codes, bits), bits, len(codes), signed=True), codes)


def test_four_bits_by_hand() -> None:
    assert pack_bits(np.array([1, 2, 15], np.uint8), 4).tolist() == [0x21, 0x0F]
    assert pack_bits(np.array([1, 7, 2], np.uint8), 3).tolist() == [0b10111001, 0b0]
    with pytest.raises(ValueError, match="take 2 bytes"):
        unpack_bits(np.zeros(3, np.uint8), 4, 3)
