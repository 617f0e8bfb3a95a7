"""The reference backend against torch and against formulas written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.cache import PAGE, KVPool, Step
from octavo.errors import KernelError
from octavo.kernels.op import Problem
from octavo.kernels.reference import ReferenceOps, round_activations
from octavo.qtensor import quantize
from octavo.schemes import TensorSpec, parse, parse_tensor

PLAIN = TensorSpec("bf16")


def make_step(lengths: list[int], fresh: list[int], pages_per_sequence: int = 4) -> Step:
    """Sequences with `lengths` tokens after the step, the last `fresh` of which are its rows; page ids are handed out backwards."""
    tables = np.arange(len(lengths) * pages_per_sequence, dtype=np.int32)[::-1].reshape(len(lengths), -1).copy()
    positions = np.concatenate([np.arange(n - f, n) for n, f in zip(lengths, fresh, strict=True)]).astype(np.int32)
    owner = np.repeat(np.arange(len(lengths)), fresh)
    slots = (tables[owner, positions // PAGE] * PAGE + positions % PAGE).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(fresh)]).astype(np.int32)
    return Step(np.zeros(len(positions), np.int32), positions, slots, starts, np.array(lengths, np.int32), tables, (starts[1:] - 1).astype(np.int32))


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, step: Step, pool: KVPool, **options: float) -> np.ndarray:
    heads, kv_heads, dim = q.shape[1], k.shape[1], q.shape[2]
    ops = ReferenceOps()
    program = ops.capture(lambda o: o.attention(q.reshape(len(q), -1), k.reshape(len(k), -1), v.reshape(len(v), -1), 0, heads=heads,
                                                kv_heads=kv_heads, head_dim=dim, scale=dim**-0.5, **options))  # type: ignore[arg-type]
    return program.run(step, pool).reshape(q.shape)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def test_causal_attention_equals_torch(random: np.random.Generator) -> None:
    n, heads, kv_heads, dim = 70, 6, 2, 16
    q, k, v = random.standard_normal((n, heads, dim)), random.standard_normal((n, kv_heads, dim)), random.standard_normal((n, kv_heads, dim))
    pool = KVPool(4, [kv_heads], [dim], TensorSpec("fp32"))
    got = attend(q, k, v, make_step([n], [n]), pool)
    t = [torch.tensor(a).transpose(0, 1)[None] for a in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*t, is_causal=True, enable_gqa=True)[0].transpose(0, 1).numpy()
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (9, 0.0), (0, 3.0), (33, 2.0)])
def test_window_and_softcap_by_hand(random: np.random.Generator, window: int, softcap: float) -> None:
    n, dim = 40, 8
    q, k, v = (random.standard_normal((n, 1, dim)) for _ in range(3))
    got = attend(q, k, v, make_step([n], [n]), KVPool(4, [1], [dim], TensorSpec("fp32")), window=window, softcap=softcap)
    for i in range(n):
        first = max(0, i - window + 1) if window else 0
        scores = np.array([q[i, 0] @ k[j, 0].astype(np.float32) for j in range(first, i + 1)]) / np.sqrt(dim)
        scores = softcap * np.tanh(scores / softcap) if softcap else scores
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(got[i, 0], weights @ v[first : i + 1, 0], atol=1e-6)


def test_chunks_and_other_sequences_change_nothing(random: np.random.Generator) -> None:
    """40 tokens at once equal 25 + 14 + 1, with a stranger's sequence in the same steps."""
    n, heads, dim = 40, 2, 8
    q, k, v = (random.standard_normal((n, heads, dim)) for _ in range(3))
    stranger = random.standard_normal((3, heads, dim))
    whole = attend(q, k, v, make_step([n], [n]), KVPool(8, [heads], [dim], TensorSpec("int8", "token", dynamic=True)))
    pool = KVPool(8, [heads], [dim], TensorSpec("int8", "token", dynamic=True))
    parts = []
    for i, (a, b) in enumerate([(0, 25), (25, 39), (39, 40)]):
        other = stranger[i : i + 1]
        step = make_step([b, i + 1], [b - a, 1])
        got = attend(*(np.concatenate([x[a:b], other]) for x in (q, k, v)), step, pool)
        parts.append(got[: b - a])
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", ["bf16", "int8"])
def test_cache_rounding_is_as_documented(random: np.random.Generator, name: str) -> None:
    n, heads, dim = 33, 2, 8
    k, v = random.standard_normal((n, heads, dim)), random.standard_normal((n, heads, dim))
    q = np.zeros((n, heads, dim))  # equal weights: the mean of all values so far
    pool = KVPool(4, [heads], [dim], parse(f"C{'8' if name == 'int8' else '16'}").cache)
    step = make_step([n], [n])
    got = attend(q, k, v, step, pool)
    if name == "bf16":
        rounded = torch.tensor(v, dtype=torch.float32).bfloat16().double().numpy()
    else:
        scale = np.abs(v.astype(np.float32)).max(axis=-1, keepdims=True) / np.float32(127)
        rounded = np.rint(v.astype(np.float32) / scale) * scale.astype(np.float64)
        page, offset = step.slots[32] // PAGE, step.slots[32] % PAGE
        assert pool.v_scale[0][page, 1, offset] == scale[32, 1, 0]
        np.testing.assert_array_equal(np.abs(pool.k[0][page, :, :, offset]).max(axis=1), 127)
    np.testing.assert_allclose(got, np.cumsum(rounded, axis=0) / np.arange(1, n + 1)[:, None, None], atol=1e-6)


def test_linear_uses_what_the_specs_say(random: np.random.Generator) -> None:
    x, w, bias = random.standard_normal((5, 96)), random.standard_normal((24, 96)).astype(np.float32), random.standard_normal(24)
    scheme = parse("W4g32A8")
    ops = ReferenceOps()
    tensor = quantize(w, scheme.weight)
    weight = ops.prepare(tensor, scheme.activation)
    (y,) = ops.linear(x, [weight], [bias], residual=np.ones((5, 24)))
    scale = np.abs(x.astype(np.float32)).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(x.astype(np.float32) / scale)
    np.testing.assert_allclose(y, (codes * scale).astype(np.float64) @ tensor.dequantize().T.astype(np.float64) + bias + 1, atol=1e-12)
    plain, second = ops.linear(x, [ops.prepare(quantize(w, TensorSpec("fp32")), PLAIN)] * 2)
    np.testing.assert_allclose(plain, x @ w.T.astype(np.float64), atol=1e-12)
    np.testing.assert_array_equal(plain, second)


def test_a_row_with_nan_stays_its_own_business() -> None:
    x = np.ones((3, 32))
    x[1, 4] = np.nan
    rounded = round_activations(x, parse_tensor("8", "activation"))
    assert np.isnan(rounded[1]).all() and (rounded[[0, 2]] == np.float64(np.float32(127) * (np.float32(1) / np.float32(127)))).all()


def test_norm_rope_gates_equal_torch(random: np.random.Generator) -> None:
    ops = ReferenceOps()
    x, gain = random.standard_normal((6, 32)), random.standard_normal(32)
    want = torch.nn.functional.rms_norm(torch.tensor(x), (32,), torch.tensor(1 + gain), eps=1e-6).numpy()
    np.testing.assert_allclose(ops.rms_norm(x, gain, 1e-6, offset=1.0), want, atol=1e-12)
    heads = ops.rms_norm(x, gain[:8], 1e-6, groups=4)
    np.testing.assert_allclose(heads[:, 8:16], ops.rms_norm(x[:, 8:16], gain[:8], 1e-6), atol=1e-12)
    g = torch.tensor(x)
    for kind, act in (("silu", torch.nn.functional.silu(g)), ("gelu", torch.nn.functional.gelu(g)),
                      ("gelu_tanh", torch.nn.functional.gelu(g, approximate="tanh"))):
        np.testing.assert_allclose(ops.gate(kind, x, x), (act * g).numpy(), atol=1e-12)  # type: ignore[arg-type]
    np.testing.assert_allclose(ops.softcap(x, 2.0), (2 * torch.tanh(g / 2)).numpy(), atol=1e-12)
    with pytest.raises(KernelError, match="known: silu"):
        ops.gate("relu", x, x)  # type: ignore[arg-type]


def test_rope_turns_pairs_of_halves(random: np.random.Generator) -> None:
    """As complex numbers: (x_i + j x_{i + rotary/2}) times e^{j angle}; what lies past `rotary` stays."""
    dim, rotary, step = 12, 8, make_step([9], [3])
    angles = np.arange(16)[:, None] * 10000.0 ** (-np.arange(rotary // 2) / (rotary // 2))
    ops = ReferenceOps()
    x = random.standard_normal((3, 2 * dim))
    table = ops.constant(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
    y = ops.capture(lambda o: o.rope(x, table, 2, dim, rotary)).run(step, KVPool(1, [], [], PLAIN)).reshape(3, 2, dim)
    pairs = x.reshape(3, 2, dim)[..., : rotary // 2] + 1j * x.reshape(3, 2, dim)[..., rotary // 2 : rotary]
    turned = pairs * np.exp(1j * angles[step.positions])[:, None]
    np.testing.assert_allclose(y[..., : rotary // 2], turned.real, atol=1e-6)
    np.testing.assert_allclose(y[..., rotary // 2 : rotary], turned.imag, atol=1e-6)
    np.testing.assert_array_equal(y[..., rotary:], x.reshape(3, 2, dim)[..., rotary:].astype(np.float32))


def test_embed_select_and_a_step_that_is_missing(random: np.random.Generator) -> None:
    ops = ReferenceOps()
    weight = ops.prepare(quantize(random.standard_normal((10, 8)).astype(np.float32), TensorSpec("fp32")), PLAIN)
    step = make_step([4, 2], [4, 2])
    step.tokens[:] = [3, 1, 4, 1, 5, 9]
    got = ops.capture(lambda o: o.select(o.embed(weight, 2.0))).run(step, KVPool(1, [], [], PLAIN))
    np.testing.assert_array_equal(got, 2 * weight.values[[1, 9]])
    with pytest.raises(KernelError, match="needs a step"):
        ops.embed(weight)


def test_refusals_say_why() -> None:
    ops = ReferenceOps()
    assert ops.supports(Problem("linear", 8, 8, parse("W2g64").weight, parse("Wnvfp4Anvfp4").activation)) is None
    assert ops.supports(Problem("linear", 8, 8, activation=parse_tensor("8ts", "activation"))) is None
    assert "int8 codes" in str(ops.supports(Problem("linear", 8, 8, activation=parse_tensor("fp8ts", "activation"))))
    assert "other users" in str(ops.supports(Problem("linear", 8, 8, activation=parse_tensor("8t", "activation"))))
    assert "cache stores" in str(ops.supports(Problem("attention", cache=parse("Cnf4").cache)))
    with pytest.raises(KernelError, match="calibration"):
        ops.prepare(quantize(np.ones((2, 32), np.float32), parse("W8").weight), parse_tensor("8ts", "activation"))
