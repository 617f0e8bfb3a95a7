"""`octavo quantize` with a goal, from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import UsageError
from octavo.quantize import Wish, plan_text, quantize
from octavo.quantize.mixed import quantize_mixed
from octavo.quantize.search import Goal
from octavo.schemes import Plan, parse

NAMES = ("W3g16", "W4g16", "W4g32", "W6g32", "W8g32")


@pytest.fixture(scope="module")
def wish(tmp_path_factory: pytest.TempPathFactory) -> Wish:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(" ".join(f"Once upon a time there was a girl called Lily who had {i} red balls and a little dog." for i in range(400)), encoding="utf-8")
    return Wish("W4", "rtn", data=text, sequences=12, tokens=64)


def test_size_is_kept_and_the_plan_can_be_given_back(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    outcome = quantize_mixed(tiny_model, tmp_path / "mixed", wish, Goal(size=170_000), NAMES, threads=1)
    assert 150_000 < outcome.search.size(outcome.solution) <= 170_000
    assert len(set(outcome.search.schemes(outcome.solution).values())) > 2
    assert 0.4 < outcome.measured / outcome.predicted < 2.5
    held = json.loads(outcome.plan_file.read_text(encoding="utf-8"))
    assert Plan.from_json(held) == outcome.search.plan(outcome.solution)
    assert outcome.front_file.read_text(encoding="utf-8").startswith("<svg")
    again = Wish(plan_text(str(outcome.plan_file)), "rtn", include=("*embed_tokens*",))
    quantize(tiny_model, tmp_path / "again", again, threads=2)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mixed" / name).read_bytes()


def test_a_bound_on_kl_holds_on_what_was_measured(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    outcome = quantize_mixed(tiny_model, tmp_path / "mixed", wish, Goal(kl=0.02), NAMES, threads=1)
    assert outcome.measured <= 0.02
    assert len(outcome.tried) <= 4
    with pytest.raises(UsageError, match="more bits"):
        quantize_mixed(tiny_model, tmp_path / "none", wish, Goal(kl=1e-9), ("W3g16", "W4g16"), threads=1)
    assert not (tmp_path / "none").exists()


def test_fused_weights_get_one_precision(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    outcome = quantize_mixed(tiny_model, tmp_path / "mixed", wish, Goal(bits=4.6), NAMES, together=True, threads=1)
    schemes = outcome.search.schemes(outcome.solution)
    for layer in range(5):
        at = f"model.layers.{layer}"
        assert len({schemes[f"{at}.self_attn.{part}_proj.weight"] for part in "qkv"}) == 1
        assert len({schemes[f"{at}.mlp.{part}_proj.weight"] for part in ("gate", "up")}) == 1


def test_what_is_wrong_is_said_before_anything_is_measured(tiny_model: Path, wish: Wish, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="calibration text"):
        quantize_mixed(tiny_model, tmp_path / "out", Wish("W4", "rtn"), Goal(bits=4), NAMES)
    with pytest.raises(UsageError, match="exists"):
        quantize_mixed(tiny_model, tmp_path, wish, Goal(bits=4), NAMES)
    with pytest.raises(UsageError, match="fewer"):
        quantize_mixed(tiny_model, tmp_path / "out", Wish("W4", "rtn", data=wish.data, sequences=5000, tokens=64), Goal(bits=4), NAMES)


def test_fastdeploys_mixquant_is_a_plan(tmp_path: Path) -> None:
    plan = Plan.from_json({"dense_quant_type": "wint8", "moe_quant_type": "wint4", "kv_cache_quant_type": "int8"})
    assert str(plan.scheme_for("model.layers.0.mlp.down_proj.weight")) == "W8A16C8"
    assert str(plan.scheme_for("model.layers.0.mlp.experts.3.down_proj.weight")) == "W4A16C8"
    assert plan.scheme_for("lm_head.weight") is None
    file = tmp_path / "mix.json"
    file.write_text('{"dense_quant_type": "wint8", "moe_quant_type": "wint4"}', encoding="utf-8")
    assert plan_text(str(file)).startswith("W8A16C16; *.experts.*=W4A16C16")
    for name in ("mixquant", "mix_quant"):  # what FastDeploy makes of wint4 for mixtures
        assert Plan.parse(name) == Plan.from_json({"dense_quant_type": "wint8", "moe_quant_type": "wint4"}) == Plan.parse(plan_text(str(file)))
    assert str(Plan.parse("mixquant; *v_proj*=W16").scheme_for("model.layers.0.self_attn.v_proj.weight")) == "W16A16C16"
    caches = {"int8": "C8", "float8_e4m3fn": "Cfp8", "int4_zp": "C4", "int8_zp": "C8"}
    for kind, name in caches.items():
        assert Plan.from_json({"dense_quant_type": "w4w2", "kv_cache_quant_type": kind}).default == parse(f"W2g64{name}")
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(Exception, match="plan"):
        plan_text(str(file))
