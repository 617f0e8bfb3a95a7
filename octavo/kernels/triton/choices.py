"""The ways to do one product: the usual kernel, the same kernel in other tiles, and torch's libraries. Each has a name, which a policy holds.

A choice holds for a bucket of rows, so a row's bits do not change while others come and go within it. All ways are right to the tolerance of their precision;
their last bits differ, as those of any two orders of summation do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import linear_fp4, linear_fp8, linear_fp8_wide, linear_int8, linear_torch
from .linear_codes import plan as codes_plan
from .tiles import BUCKETS, MOST_SPLITS, Gpu, Tile, fitted, gpu
from .weights import GpuWeight, family_of

ROWS = (*BUCKETS, 512, 4096)  # a choice is for up to so many rows; the last for all more too
USUAL = "usual"
_TILE = re.compile(r"tile (\d+)x(\d+)x(\d+) split (\d+) warps (\d+) stages (\d+)")
SUMS_OF_A_THREAD = 64  # and as many of the step in the making: more are spilled


@dataclass(frozen=True)
class Way:
    """One way to multiply a weight by what its family makes of the inputs: another tile, or a library."""

    name: str
    tile: Tile | None = None

    def multiply(self, given: Any, weight: GpuWeight, bias: torch.Tensor | None, residual: torch.Tensor | None, narrow: bool) -> torch.Tensor:
        if self.tile is None:
            return linear_torch.multiply(self.name, given, weight, bias, residual, narrow)
        found: torch.Tensor = family_of(weight).multiply(given, weight, bias, residual, tile=self.tile, narrow=narrow)
        return found


class Product:
    """A product as a program records it: its weight, whether it works on the step's logit rows, whether its result is float32, and what was chosen for it."""

    def __init__(self, weight: GpuWeight, logits: bool, wide: bool) -> None:
        self.weight, self.logits, self.wide = weight, logits, wide
        self.ways: dict[int, Way] = {}  # by the index of the bucket

    @property
    def facts(self) -> dict[str, Any]:
        """What kernels go by: equal facts, equal choices."""
        w = self.weight
        return {"n": w.n, "k": w.k, "weights": w.kind, "format": w.spec.format, "group": w.group, "rows_alike": w.rows_alike,
                "scale_type": "none" if w.scales is None else str(w.scales.dtype).removeprefix("torch."), "zeros": w.offsets is not None,
                "activation": w.activation.format, "activation_group": w.activation.size, "static": w.input_scale > 0, "wide": self.wide,
                "turned": w.columns is not None}

    def choose(self, bucket: int, name: str) -> None:
        """`name` for the bucket of that index; "" and USUAL: as without a choice. Raises ValueError for what does not multiply this weight."""
        if name in ("", USUAL):
            self.ways.pop(bucket, None)
            return
        rows = ROWS[bucket]
        reason = refusal(name, self.weight, rows, gpu(self.weight.codes.device))
        if reason is not None:
            raise ValueError(f"{name!r} does not run {self.weight.n} x {self.weight.k} {self.weight.kind} for up to {rows} rows: it {reason}")
        self.ways[bucket] = Way(name, parsed(name))

    def chosen(self, bucket: int) -> str:
        return self.ways[bucket].name if bucket in self.ways else USUAL

    def way(self, rows: int) -> Way | None:
        """What was chosen for a step of so many rows; None: the usual kernel."""
        return self.ways.get(bucket_of(rows)) if self.ways else None


def bucket_of(rows: int) -> int:
    """Index of the bucket that so many rows fall into."""
    return next((index for index, most in enumerate(ROWS) if rows <= most), len(ROWS) - 1)


def names(weight: GpuWeight, rows: int, on: Gpu) -> list[str]:
    """All that can multiply the weight by up to `rows` rows (one of ROWS), the usual one first."""
    tiles = [named(tile) for tile in neighbours(usual_tile(weight, rows, on), weight, rows, on)]
    return [USUAL, *tiles, *(name for name in linear_torch.LIBRARIES if linear_torch.supports(name, weight, rows, on) is None)]


def refusal(name: str, weight: GpuWeight, rows: int, on: Gpu) -> str | None:
    """Why this way does not multiply the weight by up to `rows` rows; None when it does."""
    tile = parsed(name)
    if tile is None:
        return linear_torch.supports(name, weight, rows, on)
    usual = usual_tile(weight, rows, on)
    if (tile.rows, tile.k) != (usual.rows, usual.k):
        return f"takes tiles of {usual.rows} rows and {usual.k} columns"
    if tile.split > 1 and rows > BUCKETS[-1]:
        return "does not split K for several tiles of rows"
    return None


def named(tile: Tile) -> str:
    return f"tile {tile.n}x{tile.rows}x{tile.k} split {tile.split} warps {tile.warps} stages {tile.stages}"


def parsed(name: str) -> Tile | None:
    """The tile of a name, None for names of libraries."""
    found = _TILE.fullmatch(name)
    return None if found is None else Tile(*map(int, found.groups()))


def usual_tile(weight: GpuWeight, rows: int, on: Gpu) -> Tile:
    """Of the kernel that takes tiles (linear_fp8_wide takes its own)."""
    family = family_of(weight)
    if family is linear_int8 or family is linear_fp4:
        found: Tile = family.plan(weight, rows, on)
        return found
    return linear_fp8.plan(weight, rows, on) if family is linear_fp8 else codes_plan(weight, rows, on)[0]


def neighbours(usual: Tile, weight: GpuWeight, rows: int, on: Gpu) -> list[Tile]:
    """Tiles that differ from the usual one in one respect, or in two that go together: few, since each must be compiled. (Where the usual kernel is the wide
    one, its rival in plain tiles comes first.)"""
    family = family_of(weight)
    wide = family is linear_fp8 and linear_fp8_wide.fits(weight, rows, on)
    x_bytes = 1 if weight.activation.quantized else 4 if usual.rows <= 16 else 2
    tried: list[Tile] = [usual] if wide else []
    if rows <= BUCKETS[-1] and weight.bits < 32:
        tried += [replace(usual, split=split) for split in (2 * usual.split, usual.split // 2) if 1 <= split <= MOST_SPLITS and usual.rows < 128]
    least = 128 if family is linear_fp4 else 64  # what its units take at a time
    tried += [replace(usual, n=n, warps=count) for n, count in ((64, 4), (128, 4), (128, 8), (256, 8)) if n >= least and (n, count) != (usual.n, usual.warps)]
    tried += [replace(usual, stages=usual.stages + more) for more in (-2, 2) if usual.stages + more >= 2]
    found: list[Tile] = []
    for tile in tried:
        fit = fitted(tile, weight.bits, x_bytes, on)
        if fit not in found and (wide or fit != usual) and fit.n * fit.rows <= 32 * fit.warps * SUMS_OF_A_THREAD:
            found.append(fit)
    return found


def ways_of(products: Sequence[Product], rows: int) -> list[Way | None] | None:
    """What was chosen for each; None where nothing was for any."""
    found = [product.way(rows) for product in products]
    return found if any(way is not None for way in found) else None
