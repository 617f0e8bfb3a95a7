"""The storage of keys and values: memory only for what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.cache import PAGE, KVPool
from octavo.schemes import TensorSpec

SPECS = [TensorSpec("bf16"), TensorSpec("fp32"), TensorSpec("int8", "token", dynamic=True)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.format)
def test_a_pool_begins_with_zeros_and_costs_what_is_written(spec: TensorSpec) -> None:
    layers, pages = 20, 4000
    before = resident()
    pool = KVPool(pages, [2] * layers, [64] * layers, spec)
    assert pool.nbytes == pages * KVPool.bytes_per_page([2] * layers, [64] * layers, spec)
    for page in (0, pages - 1):
        for array in pool.k + pool.v + pool.k_scale + pool.v_scale:
            assert array.ctypes.data % 4096 == 0 and array.flags.c_contiguous and not array[page].any()
            array[page] = 1
    assert resident() - before < 4e6 + 2 * pool.nbytes / pages      # 2 of 4,000 pages, not 2 MB in each array


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.format)
def test_a_copied_page_is_equal_in_every_layer(spec: TensorSpec) -> None:
    pool = KVPool(5, [2, 3], [16, 8], spec)
    arrays = pool.k + pool.v + pool.k_scale + pool.v_scale
    for number, array in enumerate(arrays):
        array[...] = np.arange(array.size).reshape(array.shape) % 100 + number
    held = [array.copy() for array in arrays]
    pool.copy_page(3, 1)
    for array, old in zip(arrays, held, strict=True):
        np.testing.assert_array_equal(array[1], old[3])
        np.testing.assert_array_equal(array[[0, 2, 3, 4]], old[[0, 2, 3, 4]])
    assert pool.v[0].shape[2] == PAGE


def resident() -> int:
    """Bytes of memory that this process has."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
