"""One weight and one kind of activations on this device against float64, with each number of rows.

Judged are: the numbers that the kernels multiply by, against the tensor's own; every product, by ||y - reference|| / ||reference|| and by the
largest error over the largest sum of magnitudes; bias, residual and bfloat16 results; NaN and infinity, which stay in their rows; bits, which
repeat, and which company within a bucket of rows and other places do not change; counters of split products, which must be zero again. The
reference takes activations as the kernels have rounded them; that these are right is a case of its own (check_ops, "rounding").
"""

from __future__ import annotations

from typing import Any

import torch

from octavo import formats
from octavo.kernels.triton.linear_codes import mode_of
from octavo.kernels.triton.rows import Rounded
from octavo.kernels.triton.tiles import BUCKETS, bucket
from octavo.kernels.triton.weights import GpuWeight, arranged, family_of, linear, prepare, unpacked
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

from .check_cases import ACTIVATIONS, FORMATS

# ||y - reference|| / ||reference||: float32 sums in the order of matrix units; Hopper's FP8 units keep about 14 bits of a sum; "rounded codes"
# are scale times code, rounded to bfloat16
TOLERANCES = {"fp32": 1e-5, "exact codes": 2e-4, "rounded codes": 4e-3, "int8": 2e-5, "fp8": 2e-3}
NARROW = 4e-3             # a result in bfloat16
TABLES = 3e-3             # tables that bfloat16 does not hold exactly
STATIC_SCALE = 0.03


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weight_of(name: str, n: int, k: int, activation: TensorSpec, seed: int = 0) -> tuple[QTensor, GpuWeight]:
    """Random numbers whose rows differ in size."""
    fields, more = FORMATS[name]
    made = torch.Generator(device=device()).manual_seed(seed)
    values = torch.randn(n, k, generator=made, device=device()) * torch.exp(0.5 * torch.randn(n, 1, generator=made, device=device()))
    q = quantize(values, TensorSpec(*fields, **more))
    return q, prepare(q, activation, 0.0 if activation.dynamic or not activation.quantized else STATIC_SCALE, device())


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """{"tolerance", "worst": error, "failed": [what is wrong, in words], "checks": how many things were looked at, "across_buckets": bits alike}"""
    fields, more = ACTIVATIONS[case["activation"]]
    q, weight = weight_of(case["weight"], case["n"], case["k"], TensorSpec(*fields, **more))
    look = Look(weight, TOLERANCES[_kind(weight, case["rows"])])
    look.stored(q)
    for rows in case["rows"]:
        look.product(rows)
    for rows in sorted({rows for rows in case["rows"] if rows in (3, 8, 17, 33, 128, 512)}):
        look.hostile(rows)
    for rows in sorted({bucket(rows) for rows in case["rows"]} | ({200} if max(case["rows"]) > BUCKETS[-1] else set())):
        look.company(rows)
    if case["extras"]:
        look.extras()
    return {"tolerance": look.tolerance, "worst": look.worst, "failed": look.failed, "checks": look.checks, "across_buckets": look.across(case["rows"])}


def _kind(weight: GpuWeight, rows: list[int]) -> str:
    if weight.activation.quantized:
        return "int8" if weight.activation.format == "int8" else "fp8"
    if weight.kind == "fp32":
        return "fp32"
    return "rounded codes" if not weight.exact and any(mode_of(weight, count) in ("run", "each") for count in rows) else "exact codes"


class Look:
    """Looks at one weight and keeps what is wrong."""

    def __init__(self, weight: GpuWeight, tolerance: float) -> None:
        self.weight, self.tolerance = weight, tolerance
        self.values = unpacked(weight).double()
        self.worst, self.checks = 0.0, 0
        self.failed: list[str] = []

    def rows(self, count: int, seed: int = 1) -> torch.Tensor:
        """float32 [count, k], numbers that bfloat16 holds unless all is float32."""
        made = torch.Generator(device=device()).manual_seed(seed)
        x = torch.randn(count, self.weight.k, generator=made, device=device())
        return x if self.weight.kind == "fp32" or self.weight.activation.quantized else x.to(torch.bfloat16).float()

    def expect(self, good: bool, what: str) -> None:
        self.checks += 1
        if not good:
            self.failed.append(what)

    def stored(self, q: QTensor) -> None:
        codes = q.codes.view(torch.bfloat16).double() if q.spec.format == "bf16" else q.dequantize().double()
        error = float((self.values - codes).norm() / codes.norm())
        exact = self.weight.kind != "table" or self.weight.exact
        self.expect(error <= (1e-5 if exact else TABLES), f"the weight's numbers are off by {error:.1e}")

    def product(self, count: int) -> None:
        x = self.rows(count, count)
        y = self.clean(x)
        wanted, size = self.reference(x)
        self.close(y, wanted, size, f"{count} rows", self.tolerance)
        self.expect(torch.equal(y, linear(x, [self.weight])[0]), f"{count} rows twice: other bits")

    def clean(self, x: torch.Tensor) -> torch.Tensor:
        """The product, into memory that held NaN before."""
        spoiled = [torch.full((len(x), self.weight.n), float("nan"), device=x.device) for _ in range(2)]
        del spoiled
        return linear(x, [self.weight])[0]

    def reference(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(y, sums of magnitudes), float64 [rows, n], of the activations as the kernels round them."""
        given = arranged(x, self.weight)
        if self.weight.activation.quantized:
            rounded = family_of(self.weight).inputs(given, self.weight)
            given = numbers_of(rounded)
        wide = given.double()
        return wide @ self.values.T, wide.abs() @ self.values.abs().T

    def close(self, y: torch.Tensor, wanted: torch.Tensor, size: torch.Tensor, what: str, tolerance: float) -> None:
        error = max(float((y.double() - wanted).norm() / wanted.norm()), float((y.double() - wanted).abs().max() / size.max()))
        good = error <= tolerance  # a NaN is not
        self.worst = max(self.worst, error if error == error else 1e30)
        self.expect(good, f"{what}: error {error:.1e} over {tolerance:.0e}")

    def hostile(self, count: int) -> None:
        """NaN in one row, infinity in another: these rows are no numbers, all others keep their bits."""
        x = self.rows(count, 7)
        before = linear(x, [self.weight])[0]
        x[1, 3], x[count - 1, -1] = float("nan"), float("inf")
        after = linear(x, [self.weight])[0]
        others = [row for row in range(count) if row not in (1, count - 1)]
        self.expect(bool(torch.isnan(after[1]).all()), f"{count} rows: the row with NaN is not NaN")
        self.expect(not bool(torch.isfinite(after[count - 1]).any()), f"{count} rows: the row with infinity has numbers")
        self.expect(torch.equal(before[others], after[others]), f"{count} rows: NaN changed other rows")

    def company(self, count: int) -> None:
        """A row alone in its bucket, among others, and at another place."""
        x = self.rows(count, 11)
        together = linear(x, [self.weight])[0]
        least = max((size for size in BUCKETS if size < count), default=0) + 1
        for fewer in sorted({least, (least + count) // 2}):
            self.expect(torch.equal(linear(x[:fewer], [self.weight])[0], together[:fewer]), f"{fewer} of {count} rows: other bits")
        if x.is_cuda:  # in the interpreter NumPy's products depend on places
            order = torch.randperm(count, generator=torch.Generator().manual_seed(3)).to(x.device)
            self.expect(torch.equal(linear(x[order], [self.weight])[0], together[order]), f"{count} rows in another order: other bits")
        self.expect(not bool(self.weight.counters.any()), f"{count} rows: counters of a split product were left")

    def across(self, rows: list[int]) -> bool:
        """Whether a row has the same bits in all buckets; nobody promises that."""
        x = self.rows(max(rows), 13)
        most = linear(x, [self.weight])[0][0]
        return all(torch.equal(linear(x[:count], [self.weight])[0][0], most) for count in {bucket(count) for count in rows} if count <= len(x))

    def extras(self) -> None:
        """Bias and residual; results in bfloat16; x in bfloat16."""
        x, made = self.rows(3, 17), torch.Generator(device=device()).manual_seed(5)
        bias = torch.randn(self.weight.n, generator=made, device=device())
        residual = torch.randn(3, self.weight.n, generator=made, device=device())
        wanted, size = self.reference(x)
        y = linear(x, [self.weight], [bias], residual)[0]
        self.close(y, wanted + bias.double() + residual.double(), size + 1, "bias and residual", max(self.tolerance, 1e-6))
        narrow = linear(x, [self.weight], narrow=True)[0]
        self.expect(narrow.dtype == torch.bfloat16 and float((narrow.double() - wanted).norm() / wanted.norm()) <= self.tolerance + NARROW,
                    "a result in bfloat16 is off")
        if not self.weight.activation.quantized and self.weight.kind != "fp32":
            plain = linear(x, [self.weight])[0]
            self.expect(torch.equal(linear(x.to(torch.bfloat16), [self.weight])[0], plain), "x in bfloat16 gives other bits than the same in float32")
        self.expect(linear(x[:0], [self.weight])[0].shape == (0, self.weight.n), "no rows give no result")


def numbers_of(rounded: Rounded) -> torch.Tensor:
    """float64 [rows, k] that codes and scales stand for."""
    codes = rounded.codes.double() if rounded.codes.dtype == torch.int8 else formats.get("fp8e4m3").decode(rounded.codes).double()
    scales = rounded.scales.double().t()
    return codes * (scales.repeat_interleave(rounded.group, dim=1)[:, : codes.shape[1]] if rounded.group else scales)
