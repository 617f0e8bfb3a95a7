"""Packing of small integers in words: against big integers, written down independently, and round trips."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoints._int_words import pack, repeated, unpack, words


def stream(values: list[int], bits: int, word: int) -> list[int]:
    """The words of one row, from one big integer."""
    number = sum(value << (i * bits) for i, value in enumerate(values))
    count = -(-len(values) * bits // word)
    unsigned = [(number >> (i * word)) % (1 << word) for i in range(count)]
    return [w - (1 << word) if w >> (word - 1) else w for w in unsigned]


@settings(max_examples=120, deadline=None)
@given(st.integers(2, 8), st.sampled_from([8, 16, 32, 64]), st.integers(1, 100), st.integers(0, 2**32 - 1))
def test_words_are_those_of_one_big_number(bits: int, word: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (3, count)).astype(np.uint8)
    packed = pack(values, bits, word)
    assert packed.dtype == np.dtype(f"<i{word // 8}") and packed.shape == (3, words(count, bits, word))
    assert packed.tolist() == [stream(row.tolist(), bits, word) for row in values]
    np.testing.assert_array_equal(unpack(packed, bits, count), values)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_any_words_unpack_and_pack_to_themselves(bits: int, blocks: int, seed: int) -> None:
    packed = np.random.default_rng(seed).integers(-(2**31), 2**31, (2, blocks * bits)).astype(np.int32)
    np.testing.assert_array_equal(pack(unpack(packed, bits), bits), packed)


@pytest.mark.parametrize(("value", "bits", "word", "expected"), [(1, 4, 32, 0x11111111), (1, 2, 32, 0x55555555), (128, 8, 32, 0x80808080), (1, 4, 8, 0x11)])
def test_repeated(value: int, bits: int, word: int, expected: int) -> None:
    assert repeated(value, bits, word) == expected
