"""Gradients against torch, and what they predict against the KL that is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from octavo.calibration.blocks import Bound, Weights
from octavo.calibration.gradients import TapeOps, Var
from octavo.checkpoints import open_checkpoint
from octavo.layers import head
from octavo.loading import load, open_model
from octavo.quality import Windows, compare_all
from octavo.quantize import rounder
from octavo.quantize.search import Sensitivities, candidates
from octavo.quantize.search.sensitivity import steadied

LENGTH = 48


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 512, (12, LENGTH)).astype(np.int32)


def test_gradients_equal_torch(tiny_model: Path, tokens: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    weights, few = Weights(checkpoint, found), tokens[:3]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    logits = theirs(torch.tensor(few, dtype=torch.long)).logits
    outer = np.random.default_rng(1).standard_normal(tuple(logits.shape)).astype(np.float32)
    (logits * torch.tensor(outer)).sum().backward()

    ops = TapeOps(*few.shape)
    tensors = Bound(ops, weights, {}, {})
    x = Var(weights.rows("model.embed_tokens.weight", few.reshape(-1)) * np.float32(model.embed_factor))
    y = x
    for layer in range(model.layers):
        y = model.layer(tensors, y, layer)
    z = head(tensors, model.norm(tensors, y, "model.norm", model.hidden), "model.embed_tokens", model.vocab_size, model.hidden)
    np.testing.assert_allclose(z.value, logits.detach().numpy().reshape(z.value.shape), atol=1e-4)
    ops.backward(z, outer.reshape(z.value.shape))
    named = dict(theirs.named_parameters())
    for one in ops.linears[:-1]:
        expected = named[one.weight.name].grad.numpy()
        assert one.y.grad is not None
        np.testing.assert_allclose(one.y.grad.T @ one.x.value, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_slopes_are_those_of_the_activations(kind: Literal["silu", "gelu_tanh", "gelu"]) -> None:
    ops = TapeOps(1, 1)
    rng = np.random.default_rng(2)
    gate, up = Var(rng.standard_normal((5, 7)).astype(np.float32) * 3), Var(rng.standard_normal((5, 7)).astype(np.float32))
    made = ops.softcap(ops.gate(kind, gate, up), 4.0)
    ops.backward(made, np.ones_like(made.value))
    step = 1e-2

    def at(shift: float) -> np.ndarray:
        again = TapeOps(1, 1)
        return np.asarray(again.softcap(again.gate(kind, Var(gate.value + np.float32(shift)), up), 4.0).value, np.float64)

    assert gate.grad is not None
    np.testing.assert_allclose(gate.grad, (at(step) - at(-step)) / (2 * step), atol=2e-3)


def test_predictions_are_near_what_is_measured(tiny_model: Path, tokens: np.ndarray) -> None:
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    possible = candidates(checkpoint, model, found, ("W4g16", "W6g16"))
    with Sensitivities(model, Weights(checkpoint, found), tokens, possible.wanted, rounder("rtn"), 1) as work:
        measured = work.measure()
    outer = "model.embed_tokens.weight"
    layers = [name for name in measured if name != outer]
    predicted = [measured[outer].kl[0], *(sum(float(measured[name].kl[i]) for name in layers) for i in (0, 1))]
    plans = ["W16; *embed_tokens*=W4g16"] + [f"W{bits}; *down_proj*=W{bits}r; *embed_tokens*=keep; *=W{bits}g16" for bits in (4, 6)]
    original, *others = (load(tiny_model, quantization=plan, use_cache=False, threads=1) for plan in ("32bit", *plans))
    windows = Windows(tokens, np.full(len(tokens), LENGTH - 1))
    for guess, comparison in zip(predicted, compare_all(original, others, windows, threads=1), strict=True):
        assert 0.5 < guess / comparison.kl.value < 2


@pytest.mark.parametrize("inputs", ["A8", "A4g32"])
def test_rounded_inputs_cost_what_is_measured(tiny_model: Path, tokens: np.ndarray, inputs: str) -> None:
    """Of two plans that differ in the inputs of the layers' linears alone."""
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    possible = candidates(checkpoint, model, found, (f"W8r{inputs}", "W8rA16"), keep=("*embed*",))
    with Sensitivities(model, Weights(checkpoint, found), tokens, possible.wanted, rounder("rtn"), 1) as work:
        measured = work.measure()
    place = [scheme.activation.quantized for scheme in possible.schemes].index(True)
    predicted = sum(float(one.inputs[place]) for one in measured.values())
    assert all(one.inputs[1 - place] == 0 and one.kl[place] == one.kl[1 - place] + one.inputs[place] for one in measured.values())
    plans = [f"W8r{a}; *embed*=keep" for a in ("A16", inputs)]
    original, plain, rounded = (load(tiny_model, quantization=plan, use_cache=False, threads=1, backend="reference") for plan in ("32bit", *plans))
    windows = Windows(tokens[:4], np.full(4, LENGTH - 1))
    less, more = (one.kl.value for one in compare_all(original, [plain, rounded], windows, threads=1))
    assert 0.5 < predicted / (more - less) < 2


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_weights_are_rounded_as_their_inputs_are_rotated(tiny_model: Path, tokens: np.ndarray, method: str) -> None:
    """With the h of a scheme other codes are written, for other errors: of the layers' linears and of the outer weights."""
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    schemes = ("W4g16A8h", "W4g16A16")
    possible = candidates(checkpoint, model, found, schemes)
    with Sensitivities(model, Weights(checkpoint, found), tokens, possible.wanted, rounder(method), 1) as work:
        measured = work.measure()
    for name, one in measured.items():
        assert one.kl[0] - one.inputs[0] != one.kl[1], name
    if method == "rtn":  # as online loading rounds
        plans = [f"{scheme}; *embed_tokens*={scheme}" for scheme in schemes]
        original, *others = (load(tiny_model, quantization=plan, use_cache=False, threads=1) for plan in ("32bit", *plans))
        windows = Windows(tokens, np.full(len(tokens), LENGTH - 1))
        for place, comparison in enumerate(compare_all(original, others, windows, threads=1)):
            assert 0.5 < sum(float(one.kl[place]) for one in measured.values()) / comparison.kl.value < 2


def test_any_number_of_threads_gives_the_same_bits(tiny_model: Path, tokens: np.ndarray) -> None:
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    possible = candidates(checkpoint, model, found, ("W3g16", "W4g16"))
    results = []
    for threads in (1, 2):
        with Sensitivities(model, Weights(checkpoint, found), tokens, possible.wanted, rounder("gptq"), threads) as work:
            results.append(work.measure())
    for name, one in results[0].items():
        np.testing.assert_array_equal(one.kl, results[1][name].kl)


def test_unquantized_candidates_cost_nothing(tiny_model: Path, tokens: np.ndarray) -> None:
    checkpoint, model, found = open_model(open_checkpoint(tiny_model), LENGTH)
    possible = candidates(checkpoint, model, found, ("W4g16", "W16"))
    with Sensitivities(model, Weights(checkpoint, found), tokens, possible.wanted, rounder("rtn"), 1) as work:
        for one in work.measure().values():
            assert one.kl[0] > 0
            assert one.kl[1] < 1e-6
            assert one.inputs.tolist() == [0, 0]


def test_noise_is_taken_out_but_not_the_mean() -> None:
    errors = 4.0 ** -np.arange(2, 8)
    noise = np.exp(np.random.default_rng(3).normal(0, 0.3, 6))
    steady = steadied(5 * errors * noise, errors)
    np.testing.assert_allclose(steady / errors, np.full(6, steady[0] / errors[0]))
    assert 3.5 < steady[0] / errors[0] < 7
    assert steadied(np.zeros(3), np.ones(3)).tolist() == [0, 0, 0]
