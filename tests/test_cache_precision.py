"""What a loaded model's cache is told, and the choice by sensitivity."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from octavo.cache import PAGE, KVPool
from octavo.errors import KernelError, SchemeError, UsageError
from octavo.loading import CacheChoice, CacheSearch, load
from octavo.loading._sensitivity import candidates_for, solve
from octavo.loading._tuning import FAR, PLACES, _step, static_scales
from octavo.schemes import CacheSpec, Plan, cache_pairs, parse, parse_cache


def test_names_of_caches_are_read_back() -> None:
    for name in ("C8", "C16", "Cfp8", "Cfp8ts", "C4", "C4y", "K8V4", "Kfp8V16"):
        spec = parse_cache(name)
        if isinstance(spec, CacheSpec):
            assert str(spec) == name and str(parse(name)) == f"W16A16{name}"
    assert parse_cache("int4") == parse("C4").cache and parse_cache("K8V8") == parse_cache("int8")
    assert CacheSpec(((parse("C8").cache, parse("C4").cache),)).format == "int8-int4"
    with pytest.raises(SchemeError, match="given twice"):
        parse("C8K4")


def test_a_plan_names_the_cache_of_single_layers() -> None:
    plan = Plan.parse("W8A8C4; *layers.1.*kv_cache=K8V4")
    spec = plan.cache(3)
    assert [keys.format for keys, _ in cache_pairs(spec, 3)] == ["int4", "int8", "int4"] and str(spec) == "C4 in layers 0,2, K8V4 in layers 1"
    assert Plan.from_json(plan.to_json()) == plan and Plan.parse("W8A8C8").cache(2) == parse("C8").cache


def test_solve_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    sizes = np.tile([64, 34, 26, 18], (5, 1)) * np.array([[1], [1], [2], [1], [3]])
    for _ in range(20):
        losses = np.sort(rng.random((5, 4)) * 0.01, axis=1)
        losses[:, 0] = 0
        budget = float(rng.random() * 0.03)
        chosen = solve(losses, sizes, budget)
        every = [(sum(sizes[i, c] for i, c in enumerate(one)), sum(losses[i, c] for i, c in enumerate(one))) for one in itertools.product(range(4), repeat=5)]
        least = min(size for size, loss in every if loss <= budget)
        assert sum(sizes[i, c] for i, c in enumerate(chosen)) == least and sum(losses[i, c] for i, c in enumerate(chosen)) <= budget


def test_stored_scales_by_layer() -> None:
    names = {f"model.layers.{i}.self_attn.{half}": np.array([0.5 + i], np.float32) for i in range(2) for half in "kv"}
    assert static_scales(names, 2) == [(0.5, 0.5), (1.5, 1.5)]
    assert static_scales({}, 2) is None and static_scales({**names, "model.layers.1.self_attn.v": np.ones(3, np.float32)}, 2) is None


@pytest.mark.parametrize("context", [64, 1000, 128])
def test_balance_is_measured_over_the_whole_context(tiny_model: Path, context: int) -> None:
    """Rotary embedding turns the keys' offset: what was measured near the beginning is wrong far from it (docs/kv-cache.md)."""
    loaded = load(tiny_model, use_cache=False)
    loaded.max_model_len = context
    step = _step(loaded)
    texts = [step.positions[a:b] for a, b in itertools.pairwise(step.starts[: PLACES + 1])]
    assert texts[0][0] == 0 and texts[-1][-1] == min(context, FAR) - 1 and len(texts) == PLACES
    begins = np.diff([text[0] for text in texts])
    assert begins.min() >= 0 and begins.max() - begins.min() <= 1
    assert all(np.array_equal(np.diff(text), np.ones(len(text) - 1)) for text in texts)


def test_every_format_loads_and_answers(tiny_model: Path, cache_dir: Path) -> None:
    for name in ("fp8", "int4", "K8V4", "int8"):
        loaded = load(tiny_model, quantization="8bit", kv_cache=name, cache_dir=cache_dir)
        assert loaded.report.kv_bytes_per_token == KVPool.bytes_per_page(loaded.kv_heads, loaded.head_dims, loaded.cache_spec) // PAGE
        assert all(layer.balance is not None for layer in loaded.new_pool(2).layers)
    again = load(tiny_model, quantization="8bit", kv_cache="int4", cache_dir=cache_dir)
    for mine, kept in zip(loaded.tuning(loaded.cache_spec), again.tuning(again.cache_spec), strict=True):
        assert mine.balance is not None and kept.balance is not None and np.array_equal(mine.balance, kept.balance)
    with pytest.raises(KernelError):
        load(tiny_model, kv_cache="nf4", cache_dir=cache_dir)


def test_candidates_are_what_the_checkpoint_and_the_backend_have(tiny_model: Path, cache_dir: Path) -> None:
    loaded = load(tiny_model, cache_dir=cache_dir)
    assert candidates_for(loaded) == ("C16", "C8", "K8V4", "K4V8", "C4")
    loaded.statics = [(0.05, 0.02)] * len(loaded.kv_heads)
    assert candidates_for(loaded) == ("C16", "C8", "K8V4", "K4V8", "C4", "Cfp8ts"), "the checkpoint brings scales"
    choice = CacheSearch(loaded).choose(1e-9)
    assert choice.layers == {"C16": list(range(len(loaded.kv_heads)))} and choice.kl == 0.0 and "C16 in all layers" in str(choice)
    wide = CacheChoice({"C8": [0, 2, 3, 4], "K4V8": [1]}, 10, 20, 0.001, 0.002, 208)
    assert "C8 in layers 0, 2-4, K4V8 in layer 1; 10 bytes per token instead of 20" in str(wide)


def test_auto_keeps_what_it_promises(tiny_model: Path, cache_dir: Path) -> None:
    sizes = []
    for limit in (1e-7, 1e-3, 10.0):
        loaded = load(tiny_model, kv_cache="auto", max_kl=limit, cache_dir=cache_dir)
        sizes.append(loaded.report.kv_bytes_per_token)
        assert any(f"of {limit:g} allowed" in note for note in loaded.report.notes)
    plain = KVPool.bytes_per_page(loaded.kv_heads, loaded.head_dims, parse_cache("bf16")) // PAGE
    assert plain >= sizes[0] >= sizes[1] >= sizes[2] and sizes[2] < plain and loaded.cache_spec == parse_cache("C4")
    with pytest.raises(UsageError, match="more than 0"):
        load(tiny_model, kv_cache="auto", max_kl=0.0, cache_dir=cache_dir)
    with pytest.raises(UsageError, match="add --kv-cache auto"):
        load(tiny_model, max_kl=0.01, cache_dir=cache_dir)
