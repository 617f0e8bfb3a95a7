"""Experts: rows meet the weights that they chose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu.test_weights import weight_of
from octavo.errors import KernelError
from octavo.kernels.triton import experts
from octavo.kernels.triton.linear_codes import mode_of
from octavo.kernels.triton.tiles import INTERPRETER, Tile, fitted
from octavo.kernels.triton.weights import unpacked

COUNT, TOP = 5, 2


def chosen(rows: int, seed: int = 0) -> torch.Tensor:
    """int64 [rows, TOP]: different experts of each row; expert 3 is never asked."""
    rng = np.random.default_rng(seed)
    return torch.tensor(np.array([rng.permutation([0, 1, 2, 4])[:TOP] for _ in range(rows)]).reshape(rows, TOP))


def test_every_pair_is_in_one_tile_of_its_expert() -> None:
    for rows, size in ((1, 16), (7, 4), (40, 16)):
        which = chosen(rows)
        routing = experts.route(which, COUNT, size)
        flat, seen = which.reshape(-1), []
        for expert, first, end in zip(routing.experts.tolist(), routing.firsts.tolist(), routing.ends.tolist()):
            if expert >= 0:
                pairs = routing.pairs[first : min(first + size, end)].tolist()
                assert pairs and all(flat[p] == expert for p in pairs)
                seen += pairs
        assert sorted(seen) == list(range(rows * TOP))


@pytest.mark.parametrize("name", ["mxfp4", "int4 g64 zeros", "bf16", "int8 channel"])
@pytest.mark.parametrize("rows", [1, 19])
def test_against_float64(name: str, rows: int) -> None:
    n, k = 40, 200
    weights = [weight_of(name, n, k, seed)[1] for seed in range(COUNT)]
    layer = experts.stacked(weights)
    which = chosen(rows)
    x = torch.randn(rows, k).to(torch.bfloat16).to(torch.float32)
    bias, shares = torch.randn(COUNT, n), torch.rand(rows, TOP)
    for tile in (experts.tile_for(layer.like, rows * TOP, COUNT, INTERPRETER), experts.tile_for(layer.like, 10**6, COUNT, INTERPRETER)):
        routing = experts.route(which, COUNT, tile.rows)
        y = experts.multiply(x, layer, routing, tile, bias)
        values = np.stack([unpacked(w).numpy().astype(np.float64) for w in weights])
        wanted = np.einsum("rk,rtnk->rtn", x.numpy().astype(np.float64), values[which.numpy()]) + bias.numpy()[which.numpy()]
        np.testing.assert_allclose(y.numpy().reshape(rows, TOP, n), wanted, atol=1e-5 * np.abs(wanted).max())
        mixed = experts.mix(y, shares)
        np.testing.assert_allclose(mixed.numpy(), (wanted * shares.numpy()[:, :, None]).sum(axis=1), atol=2e-5 * np.abs(wanted).max())


def test_the_second_product_has_a_row_for_each_pair() -> None:
    layer = experts.stacked([weight_of("mxfp4", 24, 64, seed)[1] for seed in range(COUNT)])
    which = chosen(6)
    x = torch.randn(6, 64)
    tile = Tile(64, 16, 64, 1, 4, 2)
    routing = experts.route(which, COUNT, 16)
    once = experts.multiply(x, layer, routing, tile)
    assert torch.equal(once, experts.multiply(x.repeat_interleave(TOP, dim=0).contiguous(), layer, routing, tile, repeated=False))
    x[2] = float("nan")
    again = experts.multiply(x, layer, routing, tile).reshape(6, TOP, 24)
    assert torch.isnan(again[2]).all() and torch.equal(again[[0, 1, 3, 4, 5]], once.reshape(6, TOP, 24)[[0, 1, 3, 4, 5]])


def test_a_row_does_not_know_its_company() -> None:
    layer = experts.stacked([weight_of("mxfp4", 24, 64, seed)[1] for seed in range(COUNT)])
    which, x = chosen(9), torch.randn(9, 64)
    tile = fitted(Tile(64, 16, 64, 1, 4, 9), 4, 4, INTERPRETER)
    together = experts.multiply(x, layer, experts.route(which, COUNT, 16), tile).reshape(9, TOP, 24)
    for row in (0, 5):
        alone = experts.multiply(x[row : row + 1], layer, experts.route(which[row : row + 1], COUNT, 16), tile)
        np.testing.assert_allclose(alone.numpy(), together[row].numpy(), rtol=1e-6, atol=1e-6)
    assert mode_of(layer.like, tile.rows) == "part"


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(KernelError, match="one shape"):
        experts.stacked([weight_of("mxfp4", 8, 64)[1], weight_of("mxfp4", 16, 64)[1]])
    assert experts.mix(torch.empty(0, 8), torch.empty(0, 2)).shape == (0, 8)
