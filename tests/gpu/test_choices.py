"""The ways to do a product: their names, what each can, and that all of them are right. On made-up GPUs and in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from octavo import qtensor, schemes
from octavo.errors import KernelError
from octavo.kernels.triton import choices, linear_torch, ops
from octavo.kernels.triton.choices import ROWS, USUAL, Product, Way, bucket_of, named, names, parsed, usual_tile
from octavo.kernels.triton.ops import TritonOps
from octavo.kernels.triton.tiles import INTERPRETER, Gpu, Tile
from octavo.kernels.triton.weights import GpuWeight, arranged, family_of, linear, prepare, unpacked

A100, L4, H200 = Gpu(108, 163 << 10, (8, 0)), Gpu(58, 99 << 10, (8, 9)), Gpu(132, 227 << 10, (9, 0))


def weight(scheme: str, n: int = 64, k: int = 128) -> GpuWeight:
    plan = schemes.parse(scheme)
    values = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    return prepare(qtensor.quantize(values, plan.weight), plan.activation)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5), (8, 0), (9, 0), (12, 0)])
def test_gpus_that_triton_does_not_compile_for_are_refused(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    if capability >= (8, 0):
        assert TritonOps().isa == f"sm_{capability[0]}{capability[1]}"
        return
    with pytest.raises(KernelError, match=f"a GPU has compute capability {capability[0]}.{capability[1]}.*8.0") as caught:
        TritonOps()
    assert "--device cpu" in str(caught.value.remedy)


def test_names_are_tiles_and_back() -> None:
    tile = Tile(64, 16, 256, 4, 4, 5)
    assert parsed(named(tile)) == tile and parsed("torch int8") is None and parsed("tile of nothing") is None
    assert [bucket_of(rows) for rows in (1, 16, 17, 128, 129, 512, 513, 10_000)] == [0, 0, 1, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("scheme", ["W16A16", "W4g64A16", "W8A8", "Wfp8Afp8", "W4Afp8"])
@pytest.mark.parametrize("on", [A100, L4, H200], ids=["A100", "L4", "H200"])
def test_a_few_ways_for_each_bucket_and_all_of_them_fit(scheme: str, on: Gpu) -> None:
    made = weight(scheme)
    for rows in ROWS:
        found = names(made, rows, on)
        assert found[0] == USUAL and 3 <= len(found) <= 13 and len(set(found)) == len(found)
        assert [choices.refusal(name, made, rows, on) for name in found[1:]] == [None] * (len(found) - 1)
        for tile in filter(None, map(parsed, found)):
            assert tile.n * tile.rows <= 64 * 32 * tile.warps and (rows <= 128 or tile.split == 1)
            assert tile.rows * tile.k + tile.n * tile.k * made.bits // 8 <= on.shared  # a stage and its like


def test_libraries_say_what_they_take() -> None:
    def of(scheme: str, rows: int = 512, on: Gpu = H200, n: int = 64, k: int = 128) -> list[str]:
        made = weight(scheme, n, k)
        return [name for name in linear_torch.LIBRARIES if linear_torch.supports(name, made, rows, on) is None]

    assert of("W8A8") == ["torch int8"] and of("W8A8", rows=16) == [] and of("W8A8", n=60) == [] and of("W8g64A8") == []
    assert of("Wfp8Afp8") == ["torch fp8"] and of("Wfp8Afp8", on=A100) == [] and of("FP8_BLOCK") == []
    assert of("FP8_BLOCK", n=128, k=512) == ["torch blocks"] and of("FP8_BLOCK", n=128, k=512, on=L4) == [] and of("FP8_BLOCK", n=128, k=640) == []
    assert of("W16A16") == ["torch bf16"] and of("W16A16", k=72) == []
    assert of("W4g64A16") == ["torch widened"] and of("W4g64A16", rows=128) == []
    assert "no library" in str(linear_torch.supports("torch magic", weight("W16A16"), 1, H200))


@pytest.mark.parametrize("scheme", ["W16A16", "W4g64A16", "W8A8", "Wfp8Afp8", "FP8_BLOCK"])
def test_every_way_gives_the_product(scheme: str) -> None:
    made, rows = weight(scheme, 128, 512) if scheme == "FP8_BLOCK" else weight(scheme), 20
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((rows, made.k)).astype(np.float32)).to(torch.bfloat16)
    bias, residual = torch.linspace(-1, 1, made.n), torch.ones((rows, made.n))
    (usual,) = linear(x, [made], [bias], residual)
    tile = usual_tile(made, 32, INTERPRETER)
    libraries = [name for name in linear_torch.LIBRARIES if linear_torch.supports(name, made, 512, INTERPRETER) is None]
    assert libraries
    for name in (*libraries, named(replace(tile, split=2)), named(replace(tile, n=32))):
        (found,) = linear(x, [made], [bias], residual, ways=[Way(name, parsed(name))])
        close = 3e-3 if name == "torch widened" else 2e-5  # which rounds scale times code to bfloat16
        assert (found - usual).norm() <= close * usual.norm(), name
    narrow, exact = (linear(x, [made], narrow=True, ways=way)[0] for way in ([Way(libraries[0])], None))
    assert narrow.dtype == torch.bfloat16 and (narrow.float() - exact.float()).norm() <= 4e-3 * exact.float().norm()
    if not made.activation.quantized:
        assert (narrow.float() - x.float() @ unpacked(made).T).norm() <= 4e-3 * exact.float().norm()
    assert family_of(made) is not None and arranged(x, made) is x


def test_a_product_keeps_what_was_chosen_for_it() -> None:
    one = Product(weight("W8A8"), logits=False, wide=True)
    assert one.facts["weights"] == "ints8" and one.facts["wide"] is True and one.way(4096) is None
    one.choose(4, "torch int8")
    assert one.chosen(4) == "torch int8" and one.chosen(0) == USUAL
    assert one.way(300) == Way("torch int8") and one.way(16) is None and choices.ways_of([one], 16) is None
    for bucket, name, why in ((0, "torch int8", "more than 16 rows"), (0, "torch bf16", "16-bit"), (0, "tile 64x32x128 split 1 warps 4 stages 3", "16 rows"),
                              (5, "tile 128x128x128 split 2 warps 8 stages 3", "split K")):
        with pytest.raises(ValueError, match=why):
            one.choose(bucket, name)
    one.choose(4, "")
    assert one.chosen(4) == USUAL
