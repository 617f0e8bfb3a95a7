"""What a step must at least read and compute, against counts by hand and by brute force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.ceilings import Rates
from octavo.kernels.costs import Cost, Shape, op_costs, step_least
from octavo.loading import LoadedModel, load
from octavo.schemes import TensorSpec
from octavo.workloads import native_program

RATES = Rates(1, ((1000, 100.0),), 1000.0, 10.0)
ATTENTION: dict[str, Any] = {"logit_rows": False, "weight_bytes": 0.0, "row_bytes": 0.0, "int_ops": 0.0, "float_ops": 0.0, "layer": 0, "heads": 6,
                             "kv_heads": 2, "head_dim": 8, "window": 0, "int_pairs": False}


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> LoadedModel:
    return load(tiny_model, quantization="8bit", use_cache=False)


def cost_of(loaded: LoadedModel, shape: Shape) -> tuple[dict[str, Cost], Cost]:
    """(by kind of op, all together)"""
    ops = native_program(loaded).describe(shape.rows, shape.logit_rows)
    kinds: dict[str, Cost] = {}
    costs = op_costs(ops, shape, loaded.cache_spec)
    for op, cost in zip(ops, costs, strict=True):
        kinds[op["kind"]] = kinds.get(op["kind"], Cost()) + cost
    return kinds, sum(costs, Cost())


def test_the_tiny_model_counted_by_hand(tiny: LoadedModel, tiny_model: Path) -> None:
    """stories260k: 5 layers, hidden 64, inner 172, 8 heads of 8, 4 key-value heads, vocabulary 512."""
    config = json.loads((tiny_model / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"], config["vocab_size"]) == (5, 64, 172, 512)
    numbers = 5 * (64 * (64 + 32 + 32) + 64 * 64 + 64 * (172 + 172) + 172 * 64)  # weights of all layers
    for counts, lengths, logit_rows in (([1], [100], 1), ([7, 1, 1], [7, 30, 64], 3), ([200], [200], 1)):
        shape = Shape(counts, lengths, logit_rows)
        kinds, total = cost_of(tiny, shape)
        assert total.ints == 2 * (numbers * sum(counts) + 512 * 64 * logit_rows)
        pairs = sum(length - count + i + 1 for count, length in zip(counts, lengths) for i in range(count))
        assert kinds["attention"].floats + kinds["attention"].ints == 5 * 4 * 8 * 8 * pairs
        # keys and values of four heads of eight numbers in bfloat16: every token's are read, every new one's are written
        assert tiny.cache_spec.format == "bf16" and total.cache == 5 * 2 * 4 * 8 * 2 * (sum(lengths) + sum(counts))
        # a number is a byte; inputs are padded to 64 (172 to 192), 16 rows are a panel (172 rows are 11), a scale of 2 or 4 bytes per 64 inputs
        panels = 5 * ((4 + 2 + 2 + 4) * 64 + (11 + 11) * 64 + 4 * 192) * 16 + (32 * 64 * 16)
        scales = 5 * ((4 + 2 + 2 + 4) + 22 + 4 * 3) * 16 + 32 * 16
        assert panels + 2 * scales <= total.weights <= panels + 4 * scales + 64 * (5 * 38 + 32)


def test_the_rows_of_a_prompt_that_wants_no_logits(tiny: LoadedModel) -> None:
    _, inside = cost_of(tiny, Shape([64], [64], 0))
    _, last = cost_of(tiny, Shape([64], [64], 1))
    assert last.ints - inside.ints == 2 * 512 * 64 and last.weights > inside.weights  # the head is not even read


@pytest.mark.parametrize("window", [0, 1, 5, 40])
@pytest.mark.parametrize(("counts", "lengths"), [([1], [1]), ([1, 1], [9, 40]), ([16], [16]), ([10, 3], [33, 3])])
def test_attention_sees_what_its_window_lets_it(window: int, counts: list[int], lengths: list[int]) -> None:
    pairs, touched = 0, 0
    for count, length in zip(counts, lengths):
        seen = np.zeros((count, length), bool)
        for row, position in enumerate(range(length - count, length)):
            seen[row, max(0, position - window + 1) if window else 0 : position + 1] = True
        pairs += int(seen.sum())
        touched += int(seen.any(0).sum())
    (cost,) = op_costs([{**ATTENTION, "window": window}], Shape(counts, lengths, 1), TensorSpec("int8", "token"))
    assert cost.floats == 4 * 6 * 8 * pairs and cost.ints == 0
    assert cost.cache == 2 * 2 * (8 + 4) * (touched + sum(counts))  # a byte a number, a float32 scale a token and head
    (as_integers,) = op_costs([{**ATTENTION, "window": window, "int_pairs": True}], Shape(counts, lengths, 1), TensorSpec("int8", "token"))
    assert as_integers.ints == cost.floats and as_integers.floats == 0


def test_the_roof_is_the_higher_of_two() -> None:
    assert Cost(weights=500, cache=500).least_seconds(RATES, 1000) == 10
    assert Cost(weights=500, ints=20000).least_seconds(RATES, 1000) == 20
    assert Cost(ints=1000, floats=20).least_seconds(RATES, 1000) == 3
    assert step_least([Cost(weights=1000, rows=1e9), Cost(ints=1000)], RATES) == 10  # activations do not leave the caches
