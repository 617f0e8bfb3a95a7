"""Trellis-coded weights: the format, rounding, panels, kernels, and a checkpoint of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import _native, formats, layouts
from octavo.cache import KVPool, Step
from octavo.checkpoints import open_checkpoint
from octavo.checkpoints.octavo import OctavoWriter
from octavo.errors import KernelError, SchemeError
from octavo.kernels.native import WHOLE_ROW, NativeOps
from octavo.kernels.reference import ReferenceOps, round_activations
from octavo.qtensor import QTensor, quantize, rotate, rotation_of
from octavo.quantize.rounders.trellis import round_weights
from octavo.schemes import Scheme, TensorSpec, parse

BITS = (2, 3, 4)
ISAS = [*_native.available_isas(), "amx_emulated"] if "avx2" in _native.available_isas() else _native.available_isas()


def spec(bits: int) -> TensorSpec:
    return parse(f"Wtcq{bits}").weight


def any_states(n: int, k: int, bits: int, seed: int = 0) -> np.ndarray:
    """States of random paths, around the rings: what a packed weight of random bytes holds."""
    packed = layouts.blank(spec(bits), -(-n // 64) * 64, k)
    tiles = packed.blob.reshape(-1, 4 * packed.meta.panel_bytes)
    tiles[:, 128:] = np.random.default_rng(seed).integers(0, 256, tiles[:, 128:].shape, np.uint8)
    states: np.ndarray = layouts.unpack(packed).codes[:n]
    return states


def weight(n: int, k: int, bits: int, seed: int = 0, scale_format: str = "fp16", rotation: int = 0) -> QTensor:
    scales = np.random.default_rng(seed).uniform(0.001, 0.02, (n, 1)).astype(np.float16).astype(np.float32)
    return QTensor(any_states(n, k, bits, seed), scales, replace(spec(bits), scale_format=scale_format), (n, k), rotation=rotation)


@pytest.mark.parametrize("bits", BITS)
def test_a_gaussian_loses_little_more_than_any_code_must(bits: int) -> None:
    """Mean squared error of rounding unit Gaussians without feedback; the best single numbers lose 0.118, 0.0345 and 0.0095."""
    x = np.random.default_rng(5).standard_normal((128, 64)).astype(np.float32)
    q = round_weights([x], [spec(bits)], np.eye(64, dtype=np.float32))[0]
    error = float(np.square(q.dequantize() - x, dtype=np.float64).mean())
    assert 0.9 * 4.0**-bits < error < {2: 0.082, 3: 0.0232, 4: 0.0085}[bits]


@pytest.mark.parametrize("bits", BITS)
def test_feedback_follows_the_inputs(bits: int) -> None:
    """The error of the outputs for inputs that resemble each other is far below that of rounding without looking at them."""
    random = np.random.default_rng(6)
    x = random.standard_normal((512, 24)) @ random.standard_normal((24, 96)) + 0.1 * random.standard_normal((512, 96))
    w = random.standard_normal((64, 96)).astype(np.float32)
    gram = (x.T @ x / len(x)).astype(np.float32)

    def loss(q: QTensor) -> float:
        d = q.dequantize().astype(np.float64) - w
        return float(np.trace(d @ gram @ d.T) / np.trace(w @ gram @ w.T))

    assert loss(round_weights([w], [spec(bits)], gram)[0]) < 0.5 * loss(round_weights([w], [spec(bits)], np.eye(96, dtype=np.float32))[0])


def test_threads_and_instruction_sets_change_no_bit() -> None:
    random = np.random.default_rng(7)
    w, x = random.standard_normal((150, 72)).astype(np.float32), random.standard_normal((300, 72)).astype(np.float32)
    made = [round_weights([w], [spec(3)], x.T @ x / 300, threads=threads, isa=isa)[0] for threads, isa in [(1, isa) for isa in ISAS] + [(3, "")]]
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].codes, other.codes)
        np.testing.assert_array_equal(made[0].scales, other.scales)


def test_zeros_dead_inputs_and_bad_numbers() -> None:
    w = np.random.default_rng(8).standard_normal((70, 64)).astype(np.float32)
    w[3] = 0
    q = round_weights([w], [spec(2)], np.zeros((64, 64), np.float32))[0]
    assert np.isfinite(q.dequantize()).all() and not q.dequantize()[3].any()
    tiny = round_weights([w * 1e-7], [spec(2)], np.eye(64, dtype=np.float32))[0]
    assert tiny.spec.scale_format == "fp32" and np.square(tiny.dequantize() * 1e7 - w).mean() < 0.1
    w[5, 5] = np.nan
    with pytest.raises(Exception, match="NaN"):
        round_weights([w], [spec(2)], np.eye(64, dtype=np.float32))
    with pytest.raises(SchemeError, match="trellis"):
        quantize(w, spec(2))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("n, k", [(64, 64), (1, 1), (17, 70), (200, 130)])
def test_panels_hold_every_path(n: int, k: int, bits: int) -> None:
    q = weight(n, k, bits, scale_format="fp32" if n == 17 else "fp16")
    packed = layouts.pack(q)
    back = layouts.unpack(packed)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)
    assert back.spec == q.spec and packed.meta == layouts.describe(packed.meta.spec, n, k) == type(packed.meta).from_json(packed.meta.to_json())
    if n > 64:
        np.testing.assert_array_equal(layouts.unpack(packed, slice(64, 150)).codes, q.codes[64:150])
    assert packed.meta.nbytes == (-(-n // 64)) * (64 * (4 if n == 17 else 2) + 8 * bits * -(-k // 64) * 64)


def test_states_that_do_not_follow_are_refused() -> None:
    q = weight(64, 64, 2)
    codes = q.codes.copy()
    codes[20, 7] ^= 1
    with pytest.raises(KernelError, match="do not follow"):
        layouts.pack(replace(q, codes=codes))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", BITS)
def test_kernels_equal_the_reference(bits: int, isa: str) -> None:
    """All kernels of an instruction set, one row and several, float and int8 inputs; rows are the same alone and together."""
    random = np.random.default_rng(bits)
    for n, k in ((192, 128), (40, 70), (100, 1100)):
        w = weight(n, k, bits, seed=n)
        dense = w.dequantize().astype(np.float64)
        x = random.standard_normal((9, k)).astype(np.float32)
        for group in (0, 64, WHOLE_ROW):
            act = TensorSpec("bf16") if not group else TensorSpec("int8", "group" if group == 64 else "token", 64 if group == 64 else 0, dynamic=True)
            native = NativeOps(threads=1).prepare(w, act)
            assert native.group == group
            seen = round_activations(x, act).astype(np.float64) if group else x.astype(np.float64)
            want, size = seen @ dense.T, np.abs(seen) @ np.abs(dense).T
            for kernel in ["", *(name for name in _native.linear_kernels(isa) if _native.linear_supported(native.native, isa, group, 9, name))]:
                got = np.empty((9, n), np.float32)
                _native.linear_once(native.native, x, got, isa, group, 1, kernel)
                assert (np.abs(got - want) <= 3e-6 * size + 1e-12).all(), (kernel, group, n, k)
                one = np.empty((1, n), np.float32)
                for row in (0, 8):
                    _native.linear_once(native.native, x[row : row + 1], one, isa, group, 1, "")
                    np.testing.assert_array_equal(one[0], got[row])


def run(ops: Any, describe: Any, rows: int) -> np.ndarray:
    at = np.arange(rows, dtype=np.int32)
    step = Step(at, at, at, np.array([0, rows], np.int32), np.array([rows], np.int32), np.zeros((1, 1), np.int32), at)
    return np.array(ops.capture(describe).run(step, KVPool(1, [1], [1], TensorSpec("fp32"))))


@pytest.mark.parametrize("width, block", [(576, 64), (96, 32), (64, 64), (7, 1), (1536, 64)])
def test_the_rotation_is_orthogonal_and_mixes_all_parts(width: int, block: int) -> None:
    assert rotation_of(width) == block
    matrix = rotate(np.eye(width), block)
    np.testing.assert_allclose(matrix @ matrix, np.eye(width), atol=1e-12)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert sorted(np.flatnonzero(matrix[0])) == list(range(0, width, width // block))


def test_rotated_inputs_through_the_program(tmp_path: Path) -> None:
    """The op of rotated inputs in a recorded step, threads and all, against the reference; and the same from a written checkpoint."""
    tensors = [replace(weight(48, 96, 2, seed=1), rotation=32), weight(48, 96, 3, seed=2)]
    tensors[1] = replace(tensors[1], rotation=32, order=np.random.default_rng(3).permutation(96).astype(np.int32))
    table = QTensor(np.random.default_rng(4).standard_normal((40, 96)).astype(np.float32), None, TensorSpec("fp32"), (40, 96))

    def describe(ops: Any) -> Any:
        a, b = ops.linear(ops.embed(ops.prepare(table, TensorSpec("fp32"))), [ops.prepare(w, TensorSpec("bf16")) for w in tensors])
        return ops.select(ops.add(a, b))

    for rows in (1, 5):
        want, *got = [run(ops, describe, rows) for ops in (ReferenceOps(), NativeOps(threads=1), NativeOps(threads=2))]
        np.testing.assert_allclose(got[0], want, rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(got[0], got[1])
    plan = {"default": str(Scheme(spec(2), TensorSpec("bf16"), TensorSpec("bf16")))}
    with OctavoWriter(tmp_path / "m", {"model_type": "llama"}, plan, {"content": "x"}) as writer:
        for i, tensor in enumerate(tensors):
            writer.add_packed(f"w{i}", layouts.pack(tensor))
        writer.finish({})
    read = open_checkpoint(tmp_path / "m")
    for i, tensor in enumerate(tensors):
        assert read.read(f"w{i}").rotation == 32
        np.testing.assert_array_equal(read.read(f"w{i}").dequantize(), tensor.dequantize())


def test_the_precision_has_a_name() -> None:
    assert str(parse("Wtcq2")) == "Wtcq2A16C16" and spec(2).bits_per_weight((576, 1536)) == pytest.approx(2 + 16 / 1536)
    assert formats.get("tcq2").code_bits == 12
    with pytest.raises(SchemeError, match="trellis"):
        parse("Wtcq2g64")
