"""How far errors reach behind attention: against every gradient, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.calibration import Blocks, Group
from octavo.calibration.attention import attend
from octavo.calibration.blocks import Bound, Weights
from octavo.calibration.gradients import TapeOps, Var
from octavo.calibration.reach import reach
from octavo.checkpoints import open_checkpoint
from octavo.loading import open_model

LENGTH = 12


@pytest.mark.parametrize(("length", "window", "softcap"), [(1, 0, 0.0), (5, 2, 0.0), (130, 0, 0.0), (300, 0, 3.0), (300, 70, 0.0), (260, 129, 2.0)])
def test_tiles_of_attention_equal_torch(length: int, window: int, softcap: float) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(length)
    share, dim = 3, 8
    q, k, v, grad = (random.standard_normal(shape).astype(np.float32) for shape in ((length, share, dim), (length, dim), (length, dim), (length, share, dim)))
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (q, k, v)]
    scores = torch.einsum("tsd,ud->tsu", exact[0], exact[1])
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    behind = torch.arange(length)[:, None, None] - torch.arange(length)
    scores = scores.masked_fill((behind < 0) | (behind >= (window or length)), -torch.inf)
    y = torch.softmax(scores, -1) @ exact[2]
    (y * torch.tensor(grad)).sum().backward()

    out = np.empty_like(q)
    for _ in attend(q, k, v, window, softcap, out):
        pass
    np.testing.assert_allclose(out, y.detach().numpy(), atol=1e-5)
    to_q, to_k, to_v = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    for tile in list(attend(q, k, v, window, softcap, out, keep=True)):
        tile.back(q, k, v, out, grad, to_q, to_k, to_v)
    np.testing.assert_allclose(out, y.detach().numpy(), atol=1e-5)
    for found, one in zip((to_q, to_k, to_v), exact, strict=True):
        np.testing.assert_allclose(found, one.grad.numpy(), atol=2e-5 * max(1.0, float(one.grad.abs().max())))


def test_reach_is_the_mean_squared_effect_of_errors(tiny_model: Path) -> None:
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    weights = Weights(checkpoint, found)
    tokens = np.random.default_rng(0).integers(3, 512, LENGTH).astype(np.int32)
    x, held, tables = weights.rows("model.embed_tokens.weight", tokens), {}, {}

    def layer(ops: TapeOps, rows: Var) -> Any:
        return model.layer(Bound(ops, weights, held, tables), rows, 1)

    means: dict[str, np.ndarray] = {}
    draws = 300
    for seed in range(draws):
        for name, values in reach(layer, x, (seed,)).items():
            assert values.shape == (LENGTH,) and values.dtype == np.float32
            means[name] = means.get(name, 0) + values / draws
    assert [name.split(".")[-2] for name in means] == ["q_proj", "k_proj", "v_proj"]
    queries = means["model.layers.1.self_attn.q_proj.weight"]
    assert queries[0] < 1e-9 * queries.max()  # the first token has nothing to choose from

    exact = {name: np.zeros(LENGTH) for name in means}  # one output of one token after the other
    for place in range(LENGTH):
        for output in range(model.hidden):
            ops = TapeOps(1, LENGTH)
            layer(ops, Var(x))
            behind = next(one for one in ops.linears if one.weight.name.endswith("o_proj.weight"))
            direction = np.zeros_like(behind.y.value)
            direction[place, output] = 1 / np.linalg.norm(behind.y.value[place])
            ops.backward(behind.y, direction)
            for one in ops.linears:
                if one.weight.name in exact and one.y.grad is not None:
                    exact[one.weight.name] += np.square(one.y.grad).sum(axis=1)
    for name, values in means.items():
        np.testing.assert_allclose(values, exact[name], rtol=0.35, atol=0.02 * exact[name].max())
        assert values.sum() == pytest.approx(exact[name].sum(), rel=0.05)


def test_a_layer_without_attention_reaches_nowhere() -> None:
    assert reach(lambda ops, x: ops.linear(x, []), np.ones((3, 4), np.float32), (0,)) == {}


def test_linears_before_attention_count_by_it(tiny_model: Path) -> None:
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    ids = np.random.default_rng(0).integers(3, 512, (5, LENGTH)).astype(np.int32)
    seen: dict[int, dict[str, np.ndarray]] = {}
    for threads in (1, 3):
        seen[threads] = {}
        with Blocks(model, Weights(checkpoint, found), ids, threads) as blocks:

            def visit(group: Group, of: dict[str, np.ndarray] = seen[threads]) -> None:
                of[group.names[0]] = np.concatenate(group.counts()).reshape(-1, LENGTH)
                of[f"{group.names[0]}, size of outputs alone"] = np.concatenate(group.counts(reaching=False)).reshape(-1, LENGTH)

            block = next(iter(blocks))
            block.run(visit)
    assert len(seen[1]) == 8
    for name, values in seen[1].items():
        np.testing.assert_array_equal(values, seen[3][name])
        assert abs(values.mean() - 1) < 1e-5
        if "q_proj" not in name and "alone" not in name:
            np.testing.assert_array_equal(values, seen[1][f"{name}, size of outputs alone"])
    before = seen[1]["model.layers.0.self_attn.q_proj.weight"] / seen[1]["model.layers.0.self_attn.q_proj.weight, size of outputs alone"]
    np.testing.assert_allclose(before, np.broadcast_to(before[0], before.shape), rtol=1e-4)  # a factor for each place
    assert before[0].std() > 0.1 and before[0, 0] > before[0, -1]
