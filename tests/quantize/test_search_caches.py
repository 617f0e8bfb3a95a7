"""The key-value cache in the mixed search: what its candidates take and lose, beside those of the weights, in one program."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import UsageError
from octavo.loading import load
from octavo.quality.own_text import OWN_TEXT
from octavo.quantize import Wish
from octavo.quantize.mixed import Outcome, quantize_mixed
from octavo.quantize.search import Goal, split

KEEP = ("*embed*", "*self_attn*", "model.layers.[0-2].*")
NAMES = ("W4g16", "W6g16", "W8g16", "C8", "K8V4", "C4")
KL = 0.03


@pytest.fixture(scope="module")
def wish(shared_data: Path) -> Wish:
    return Wish("W4", "rtn", data=shared_data / "text" / "tinystories-a.jsonl", sequences=8, tokens=64, keep=KEEP)


@pytest.fixture(scope="module")
def found(tiny_model: Path, wish: Wish, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("search") / "out"
    return quantize_mixed(tiny_model, out, wish, Goal(kl=KL), NAMES, to="octavo", context=256, threads=1, receipt_text=OWN_TEXT), out


def test_what_is_written_runs_with_the_cache_that_was_found(found: tuple[Outcome, Path]) -> None:
    outcome, out = found
    assert outcome.trial.worst <= KL
    loaded = load(out, use_cache=False, threads=1)
    spec = outcome.search.cache(outcome.solution)
    assert spec == loaded.cache_spec and outcome.search.cache_name(outcome.solution) != "C16"
    said = outcome.to_json()
    assert said["cache"]["bytes_per_token"] == loaded.report.kv_bytes_per_token
    assert said["cache"]["context"] == 256
    weights = sum(int(item.bytes[i]) for item, i in zip(outcome.search.items, outcome.solution.choice, strict=True) if not item.name.startswith("cache"))
    assert said["bytes"] == weights + outcome.search.candidates.fixed + 256 * said["cache"]["bytes_per_token"]
    assert said["bits"] == 8 * weights / outcome.search.candidates.numbers
    plan = json.loads((out / "octavo-plan.json").read_text(encoding="utf-8"))
    assert plan["search"]["cache"] == said["cache"]
    assert outcome.receipt is not None and outcome.receipt.settings["search"]["cache"] == said["cache"]


def test_losses_are_those_of_the_automatic_cache_and_the_choice_is_exact(found: tuple[Outcome, Path]) -> None:
    search = found[0].search
    caches = search.caches
    assert caches is not None and caches.names == ("C16", "C8", "K8V4", "C4")
    assert (caches.losses[:, 0] == 0).all() and (caches.losses[:, 1:].sum(axis=0) > 0).all()
    assert (np.diff(caches.sizes, axis=1) < 0).all()
    items = search.items
    every = np.array(list(itertools.product(*(range(len(item.bytes)) for item in items[:3] + items[-4:]))))
    few = replace(search, candidates=search.candidates)
    few.__dict__["items"] = items[:3] + items[-4:]
    sizes = sum(item.bytes[every[:, i]] for i, item in enumerate(few.items))
    losses = sum(item.cost[every[:, i]] for i, item in enumerate(few.items))
    for limit in np.linspace(float(losses.min()) * 1.5, 0.05, 8):
        assert few.choose(Goal(kl=float(limit))).bytes == sizes[losses <= limit / few.factor].min()


def test_the_longer_the_context_the_smaller_the_cache(found: tuple[Outcome, Path]) -> None:
    search = found[0].search
    assert search.caches is not None
    per_token = []
    for context in (1, 64, 256, 4096, 1_000_000):
        longer = replace(search, caches=replace(search.caches, context=context))
        per_token.append(longer.cache_bytes(longer.choose(Goal(kl=KL))))
    assert per_token == sorted(per_token, reverse=True)
    assert per_token[0] > per_token[-1]


def test_formats_that_can_say_no_more_get_one_cache_for_all_layers(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    outcome = quantize_mixed(tiny_model, tmp_path / "out", wish, Goal(size=1_150_000), ("W4g16", "W8g16", "C8"), context=512, threads=1)
    assert outcome.search.size(outcome.solution) <= 1_150_000
    assert outcome.search.cache_name(outcome.solution) == "C8"
    assert load(tmp_path / "out", use_cache=False, threads=1).cache_spec == outcome.search.cache(outcome.solution)


def test_names_of_caches_stand_for_themselves(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    assert split(["W4g64", "C8", "W16", "K8V4", "C16"]) == (["W4g64", "W16"], ["C16", "C8", "K8V4"])
    assert split(["W4g64", "W8A8"]) == (["W4g64", "W8A8"], [])
    for names, goal, said in ((("W4g16C8", "W8g16"), Goal(kl=1.0), r"says two things.*W4g16A16,C8"),
                              (("W4g16", "C8"), Goal(bits=6), "--target-size or --max-kl"),
                              (("W4g16", "C8"), Goal(kl=1.0), "--context: 100000 tokens.*takes 1 to 512")):
        with pytest.raises(UsageError, match=said):
            quantize_mixed(tiny_model, tmp_path / "out", wish, goal, names, context=100_000)
    assert not list(tmp_path.iterdir())
