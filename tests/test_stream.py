"""From a checkpoint to panels: what is stored in the precision asked for is moved to the last bit, whatever its scales, offsets and order are."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octavo import layouts, schemes
from octavo.errors import CheckpointError
from octavo.loading import _stream
from octavo.loading._assign import Job
from octavo.loading._kept import fits
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

BF16 = TensorSpec("bf16")


class Held:
    """A checkpoint of one tensor."""

    def __init__(self, tensor: QTensor) -> None:
        self.tensor, self.tensors = tensor, {"w": SimpleNamespace(file="here", spec=tensor.spec, shape=tensor.shape)}

    def read(self, name: str, rows: slice | None = None) -> QTensor:
        """Whole cells only, as codecs do."""
        q, spec = self.tensor, self.tensor.spec
        if rows is None:
            return q
        cell = spec.size if spec.granularity == "block" else 1
        assert spec.granularity != "tensor" and rows.start % cell == 0 and (rows.stop % cell == 0 or rows.stop == q.shape[0])
        scales, zeros, offsets = (a if a is None else a[rows.start // cell : -(-rows.stop // cell)] for a in (q.scales, q.zeros, q.offsets))
        return replace(q, codes=q.codes[rows], shape=(rows.stop - rows.start, q.shape[1]), scales=scales, zeros=zeros, offsets=offsets)

    def release(self, name: str) -> None:
        pass


def made(tensor: QTensor, asked: TensorSpec | None = None, kept: TensorSpec | None = None) -> tuple[layouts.Packed, Job]:
    spec = asked or tensor.spec
    job = Job("w", "w", (tensor.shape[0], tensor.shape[1]), spec, kept or spec, BF16, "native")
    checkpoint: Any = Held(tensor)
    return _stream.make_packed(checkpoint, job), job


def random(name: str, n: int = 50, k: int = 130) -> QTensor:
    rng = np.random.default_rng(0)
    q = quantize(rng.standard_normal((n, k)).astype(np.float32), schemes.parse(name).weight)
    return q if q.scales is None else replace(q, scales=q.scales * np.float32(3))  # no longer what rounding would choose


@pytest.mark.parametrize("name", ["W4g32", "W4g32z", "W8", "W6g16", "Wfp8", "Wfp8b32x32", "Wfp8b24x20", "Wfp8t", "Wmxfp4", "Wmxfp8", "Wnvfp4", "WNF4",
                                  "W3g64@bf16"])
def test_stored_codes_are_moved(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "CHUNK", 1 << 11)  # several pieces
    q = random(name) if "mx" not in name else quantize(np.random.default_rng(0).standard_normal((50, 130)).astype(np.float32), schemes.parse(name).weight)
    monkeypatch.setattr(_stream, "quantize", lambda *_: pytest.fail("rounded again"))
    packed, job = made(q)
    back = layouts.unpack(packed)
    assert np.array_equal(back.codes, q.codes) and np.array_equal(back.dequantize(), q.dequantize()) and fits(packed, job)


def test_order_and_factors_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "CHUNK", 1 << 11)
    rng = np.random.default_rng(1)
    q = replace(random("W4g32"), order=rng.permutation(130).astype(np.int32), factors=rng.uniform(0.5, 2, 130).astype(np.float32))
    packed, _ = made(q)
    assert np.array_equal(layouts.unpack(packed).dequantize(), q.dequantize()) and packed.order is not None and packed.factors is not None
    emulated, _ = made(q, kept=BF16)  # the numbers themselves, input by input
    np.testing.assert_allclose(layouts.unpack(emulated).dequantize(), q.dequantize(), rtol=2**-8)
    assert emulated.order is None and emulated.factors is None
    other, _ = made(q, schemes.parse("W8g32").weight)
    np.testing.assert_allclose(layouts.unpack(other).dequantize(), q.dequantize(), atol=0.2)
    assert other.order is None


def test_offsets_without_a_scale_do_not_round_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    q = random("W4g32z")
    assert q.scales is not None and q.zeros is not None
    scales, offsets = q.scales.copy(), -(q.zeros * q.scales)
    scales[3, 1], offsets[3, 1] = 0, np.float32(0.1)  # which float16 does not hold
    stored = replace(q, scales=scales, zeros=None, offsets=offsets)
    monkeypatch.setattr(_stream, "quantize", lambda *_: pytest.fail("rounded again"))
    packed, job = made(stored)
    back = layouts.unpack(packed)
    expected = stored.codes.copy()
    expected[3, 32:64] = 0
    assert np.array_equal(back.codes, expected)
    np.testing.assert_allclose(back.dequantize(), stored.dequantize(), rtol=1e-6, atol=1e-7)
    assert (back.dequantize()[3, 32:64] == np.float32(0.1)).all()
    assert packed.meta.scale_type == "fp32" and fits(packed, job)


@pytest.mark.parametrize(("stored", "asked", "scale_type"), [("W4g32@bf16", "W4g32", "fp32"), ("W4g32@fp32", "W4g32", "fp32"), ("W4g32", "W4g32@fp32", "fp32"),
                                                             ("Wfp8b32x32@bf16", "Wfp8b32x32", "fp32"), ("W8t@bf16", "W8t@fp16", "fp32")])
def test_only_the_type_of_the_scales_differs(stored: str, asked: str, scale_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q = random(stored)
    monkeypatch.setattr(_stream, "quantize", lambda *_: pytest.fail("rounded again"))
    assert q.scales is not None
    q = replace(q, scales=q.scales * np.float32(2.0**-40))  # beyond what float16 holds
    packed, job = made(q, schemes.parse(asked).weight)
    assert np.array_equal(layouts.unpack(packed).dequantize(), q.dequantize())
    assert packed.meta.scale_type == scale_type and fits(packed, job)


def test_rows_that_disagree_about_their_inputs_are_refused() -> None:
    q = random("W4g32", 200)

    class Changing(Held):
        def read(self, name: str, rows: slice | None = None) -> QTensor:
            part = super().read(name, rows)
            assert rows is not None
            return replace(part, order=np.roll(np.arange(130, dtype=np.int32), rows.start))

    job = Job("w", "w", (200, 130), q.spec, q.spec, BF16, "native")
    checkpoint: Any = Changing(q)
    chunk, _stream.CHUNK = _stream.CHUNK, 1 << 11
    try:
        with pytest.raises(CheckpointError, match="different ways"):
            _stream.make_packed(checkpoint, job)
    finally:
        _stream.CHUNK = chunk


@pytest.mark.parametrize("stored", ["Wfp8b32x32", "Wfp8b24x20", "Wfp8t", "W8t", "Wnvfp4", "Wfp8b128x128"])
def test_scales_that_cross_rows_are_read_in_whole_cells_whatever_is_asked(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "CHUNK", 1 << 11)
    q = random(stored)
    for asked, relative, absolute in ((BF16, 2**-8, 0), (schemes.parse("W8g32").weight, 0, 0.15)):
        packed, job = made(q, asked)
        back = layouts.unpack(packed).dequantize()
        np.testing.assert_allclose(back, q.dequantize(), rtol=relative, atol=absolute)
        assert fits(packed, job)
