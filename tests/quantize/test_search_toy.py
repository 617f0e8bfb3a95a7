"""The whole search against trying everything, on a model of six layers with one weight in question in each."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.checkpoints import open_checkpoint
from octavo.loading import load, open_model
from octavo.quality import Windows, compare_all
from octavo.quantize import Wish
from octavo.quantize.mixed import quantize_mixed
from octavo.quantize.run import samples_of
from octavo.quantize.search import Goal

LAYERS = 6
KEEP = ("*embed*", "*self_attn*", "*gate*", "*up*")
Setting = tuple[Path, Wish]


@pytest.fixture(scope="module")
def toy(tiny_model: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """stories260k with one layer more: its second one again, half as strong."""
    folder = tmp_path_factory.mktemp("toy")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_model / name, folder / name)
    tensors = load_file(tiny_model / "model.safetensors")
    for name, values in list(tensors.items()):
        if name.startswith("model.layers.1."):
            weak = name.endswith(("o_proj.weight", "down_proj.weight"))
            tensors[name.replace(".1.", f".{LAYERS - 1}.", 1)] = values * np.float32(0.5) if weak else values.copy()
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": LAYERS}), encoding="utf-8")
    return folder, Wish("W4", "rtn", data=shared_data / "text" / "tinystories-a.jsonl", sequences=32, tokens=64, keep=KEEP)


@pytest.mark.parametrize("goal", [Goal(bits=4.4), Goal(kl=0.01)], ids=["bits", "kl"])
def test_the_plan_is_the_best_of_all(toy: Setting, tmp_path: Path, goal: Goal) -> None:
    """Four precisions for each of six weights: 4,096 plans, each with its bytes and its predicted loss."""
    source, wish = toy
    outcome = quantize_mixed(source, tmp_path / "out", wish, goal, ("W2r", "W3r", "W4r", "W8r"), threads=1)
    items = outcome.search.items
    assert [len(item.bytes) for item in items] == [4] * LAYERS
    every = np.array(list(itertools.product(range(4), repeat=LAYERS)))
    sizes = sum(item.bytes[every[:, i]] for i, item in enumerate(items))
    losses = sum(item.cost[every[:, i]] for i, item in enumerate(items))

    def best(bits: float) -> tuple[int, ...]:
        fits = np.flatnonzero(sizes <= int(bits * outcome.search.candidates.numbers / 8))
        return tuple(every[fits[np.argmin(losses[fits])]].tolist())

    if goal.bits is not None:
        assert outcome.solution.choice == best(goal.bits)
    else:
        assert goal.kl is not None and outcome.trial.worst <= goal.kl
        assert outcome.solution.bytes == sizes[losses <= outcome.solution.cost * (1 + 1e-9)].min()
    for bits in np.linspace(2.2, 8.2, 40):
        found = outcome.search.choose(Goal(bits=float(bits)))
        assert found.choice == best(float(bits))
        assert found.gap == 0


def test_the_plan_is_the_best_that_can_be_measured(toy: Setting, tmp_path: Path) -> None:
    """Two precisions: all 20 plans of this size are loaded, and their loss is measured on text that the search has predicted it for."""
    source, wish = toy
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(LAYERS)]
    outcome = quantize_mixed(source, tmp_path / "out", wish, Goal(bits=4.7), ("W3r", "W6r"), threads=1)
    every = [plan for plan in itertools.product(("W3r", "W6r"), repeat=LAYERS) if plan.count("W6r") == 3]
    texts = ["; ".join(["W6r", *(f"{name}={scheme}" for name, scheme in zip(names, plan, strict=True)), "*=keep"]) for plan in every]
    chosen = tuple(str(outcome.search.schemes(outcome.solution)[name]).removesuffix("A16C16") for name in names)
    checkpoint, model, _ = open_model(open_checkpoint(source), wish.tokens)
    ids = samples_of(checkpoint, model, wish).ids[:16]
    original, *others = (load(source, quantization=text, use_cache=False, threads=1) for text in ("32bit", *texts))
    losses = [one.kl.value for one in compare_all(original, others, Windows(ids, np.full(len(ids), ids.shape[1] - 1)), threads=1)]
    assert every[int(np.argmin(losses))] == chosen
