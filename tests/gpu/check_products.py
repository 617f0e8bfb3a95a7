"""Every precision with every small number of rows, over one odd and one whole shape, in Triton's interpreter: minutes (make test-triton). test_linear_*.py
try each once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu import test_linear_codes as codes
from gpu import test_linear_fp8 as fp8
from gpu import test_linear_int8 as int8
from gpu.test_weights import SPECS, weight_of
from octavo.kernels.triton.weights import linear
from octavo.schemes import TensorSpec

ROWS = (*range(1, 9), 16, 33, 64)
SHAPES = ((37, 203), (48, 256))  # n, k


def given(rows: int, k: int) -> torch.Tensor:
    """Numbers of all sizes, a row of zeros, a row that is no number (where there are so many)."""
    x = np.random.default_rng(rows).standard_normal((rows, k)) * 2.0 ** np.random.default_rng(k).integers(-6, 6, (rows, 1))
    if rows > 2:
        x[1] = 0
    if rows > 3:
        x[2, k // 2] = np.nan
    return torch.from_numpy(x.astype(np.float32))


def sound(rows: int) -> list[int]:
    return [row for row in range(rows) if rows <= 3 or row != 2]


@pytest.mark.parametrize("name", SPECS)
def test_float_activations(name: str) -> None:
    for n, k in SHAPES:
        _, weight = weight_of(name, n, k, k)
        for rows in ROWS:
            x = given(rows, k)
            x = x if weight.kind == "fp32" else x.to(torch.bfloat16).to(torch.float32)
            y = linear(x, [weight])[0]
            for row in sound(rows):
                codes.close(y[row : row + 1], x[row : row + 1], weight, codes.error_of(weight, rows))
            assert rows <= 3 or y[2].isnan().all()


@pytest.mark.parametrize("name", SPECS)
def test_split_k(name: str) -> None:
    codes.test_split_k_gives_the_same_bits_every_time(name)


@pytest.mark.parametrize("name", int8.NAMES)
@pytest.mark.parametrize("group", [0, *int8.GROUPS])
def test_int8_activations(name: str, group: int) -> None:
    spec = int8.TOKEN if not group or (group == 32 and name.startswith("int2")) else int8.GROUPS[group]
    rounded(name, spec, int8)


@pytest.mark.parametrize("name", fp8.NAMES)
@pytest.mark.parametrize("spec", [fp8.TOKEN, fp8.GROUP], ids=["token", "g128"])
def test_fp8_activations(name: str, spec: TensorSpec) -> None:
    rounded(name, spec, fp8)


def rounded(name: str, spec: TensorSpec, suite: object) -> None:
    for n, k in SHAPES:
        _, weight = weight_of(name, n, k, k, spec)
        for rows in ROWS:
            x = given(rows, k)
            y = linear(x, [weight])[0]
            for row in sound(rows):
                suite.close(y[row : row + 1], suite.expected(x[row : row + 1], weight, spec))  # type: ignore[attr-defined]
            assert rows <= 3 or y[2].isnan().all()
