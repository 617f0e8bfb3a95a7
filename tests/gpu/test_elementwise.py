"""Norms, rotary positions, gates and look-ups against the reference backend; rounding against the number formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from octavo import formats
from octavo.kernels.reference import ReferenceOps
from octavo.kernels.triton import embed, gate, norm, rope
from octavo.kernels.triton._rounding import from_e4m3, stored, to_e4m3, whole

WIDTHS = [1, 24, 64, 100]
OUT = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8}


def rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    x: np.ndarray = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32) * 3
    return x


def near(found: torch.Tensor, wanted: np.ndarray) -> None:
    """Each number to the precision of its buffer, or of the row's largest."""
    error = np.abs(found.to(torch.float64).numpy() - wanted)
    assert (error <= OUT[found.dtype] * np.maximum(np.abs(wanted), np.abs(wanted).max(axis=-1, keepdims=True) * 0.1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", list(OUT))
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm_equals_the_reference(width: int, dtype: torch.dtype) -> None:
    x, gain = rows(5, 3 * width), rows(1, width, 1)[0]
    for groups, g in ((3, gain), (1, np.tile(gain, 3))):
        out = torch.empty(5, 3 * width, dtype=dtype)
        norm.rms_norm(torch.from_numpy(x), torch.from_numpy(g), out, 1e-5, 1.0, groups)
        near(out, ReferenceOps().rms_norm(x.astype(np.float64), g.astype(np.float64), 1e-5, 1.0, groups))


def test_a_row_that_is_no_number_stays_alone() -> None:
    x = rows(3, 40)
    x[1, 7] = np.nan
    out = torch.empty(3, 40)
    norm.rms_norm(torch.from_numpy(x), torch.ones(40), out, 1e-5)
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", list(OUT))
@pytest.mark.parametrize(("heads", "dim", "rotary"), [(1, 6, 6), (3, 24, 24), (2, 64, 32)])
def test_rope_equals_the_reference(heads: int, dim: int, rotary: int, dtype: torch.dtype) -> None:
    x = rows(4, heads * dim)
    angles = np.arange(50)[:, None] * (100.0 ** -(np.arange(rotary // 2) / (rotary // 2)))
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    positions = np.array([0, 7, 49, 3], np.int32)
    out = torch.empty(4, heads * dim, dtype=dtype)
    rope.rope(torch.from_numpy(x), out, torch.from_numpy(table), torch.from_numpy(positions), heads, dim, rotary)
    ops = ReferenceOps()
    ops.enter(type("Step", (), {"positions": positions})(), None)  # type: ignore[arg-type]
    near(out, ops.rope(x.astype(np.float64), table.astype(np.float64), heads, dim, rotary))


@pytest.mark.parametrize("dtype", list(OUT))
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_gates_equal_the_reference(kind: Any, dtype: torch.dtype) -> None:
    x, up = rows(3, 700), rows(3, 700, 1)
    x[0, :4] = [0, -90, 90, np.nan]
    out = torch.empty(3, 700, dtype=dtype)
    gate.gate(kind, torch.from_numpy(x), torch.from_numpy(up), out)
    assert out[0, 3].isnan()
    x[0, 3] = out[0, 3] = 0
    near(out, ReferenceOps().gate(kind, x.astype(np.float64), up.astype(np.float64)))


def test_sums_and_soft_caps() -> None:
    x, y = rows(2, 1500), rows(2, 1500, 1)
    out = torch.empty(2, 1500)
    gate.add(torch.from_numpy(x), torch.from_numpy(y).to(torch.bfloat16), out)
    assert np.array_equal(out.numpy(), x + torch.from_numpy(y).to(torch.bfloat16).float().numpy())
    x[0, :3] = [np.nan, 1e9, -1e9]
    gate.softcap(torch.from_numpy(x), out, 30.0)
    assert out[0, 0].isnan() and out[0, 1] == 30 and out[0, 2] == -30
    np.testing.assert_allclose(out.numpy()[1], 30 * np.tanh(x[1].astype(np.float64) / 30), rtol=0, atol=1e-5)


def test_rows_are_taken_in_any_order() -> None:
    x = rows(6, 1100)
    out = torch.empty(3, 1100)
    embed.take(torch.from_numpy(x), torch.tensor([5, 0, 5], dtype=torch.int32), out, 2.0)
    assert np.array_equal(out.numpy(), 2 * x[[5, 0, 5]])


@triton.jit
def _round(x, bf16, codes, back, numbers, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    values = tl.load(x + at)
    tl.store(bf16 + at, stored(values, False))
    code = to_e4m3(values)
    tl.store(codes + at, code)
    tl.store(back + at, from_e4m3(code))
    tl.store(numbers + at, whole(values))


def test_rounding_is_that_of_the_number_formats() -> None:
    """Ties, subnormals, saturation, NaN and infinities among random numbers of all sizes."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1024) * 2.0 ** rng.integers(-12, 10, 1024)).astype(np.float32)
    every = np.asarray(formats.get("fp8e4m3").decode(np.arange(256, dtype=np.uint8)), np.float32)
    finite = np.sort(every[np.isfinite(every)])
    x[:253] = finite[:253]
    x[253:505] = (finite[1:253] + finite[:252]) / 2
    x[505:512] = [0.0, -0.0, 449, -1e30, np.inf, -np.inf, np.nan]
    given = torch.from_numpy(x)
    bf16, codes = torch.empty(1024, dtype=torch.bfloat16), torch.empty(1024, dtype=torch.uint8)
    back, numbers = torch.empty(1024), torch.empty(1024)
    _round[(1,)](given, bf16, codes, back, numbers, COUNT=1024)
    assert np.array_equal(bf16.view(torch.int16).numpy(), given.to(torch.bfloat16).view(torch.int16).numpy()) or torch.equal(
        bf16[~given.isnan()], given.to(torch.bfloat16)[~given.isnan()])
    number = formats.get("fp8e4m3")
    assert np.array_equal(codes.numpy(), np.asarray(number.encode(x)))
    np.testing.assert_array_equal(back.numpy(), np.asarray(number.decode(codes.numpy()), np.float32))
    small = np.abs(x) < 2.0**21
    assert np.array_equal(numbers.numpy()[small], np.rint(x[small]))
