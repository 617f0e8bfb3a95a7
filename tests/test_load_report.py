"""What loading says of itself: what each class of weights was asked for and what really runs, and plans in few words."""

from __future__ import annotations

import json
from pathlib import Path

from octavo.loading import Runs, load
from octavo.schemes import Plan, parse


def test_what_runs_by_class_of_weights(tiny_model: Path) -> None:
    report = load(tiny_model, quantization="W4g32A8", use_cache=False, threads=1).report
    assert sum(one.bytes for one in report.runs) == report.weight_bytes
    assert {one.kernel for one in report.runs} == {"native"}
    assert [one.bytes for one in report.runs] == sorted((one.bytes for one in report.runs), reverse=True)
    linears = max(report.runs, key=lambda one: one.tensors)
    assert (linears.asked, linears.kept, linears.tensors) == ("4g32", "4g32", 35) and linears.runs_as.startswith("W4g32A8")
    assert "35 weights of W4g32 run as W4g32A8" in str(linears) and "emulated" not in str(linears)
    assert any("35 weights of W4g32" in line for line in report.lines()) and report.to_json()["runs"][0]["asked"] == report.runs[0].asked


def test_emulated_classes_say_so() -> None:
    assert str(Runs("fp8e5m2", "16", "16", "native", 3, 1_000_000)) == "3 weights of Wfp8e5m2 run as W16A16 (emulated) on native, 1 MB"


def test_long_plans_are_counted() -> None:
    default, other = parse("W4g32zA16"), parse("W8g32A16")
    few = Plan(default, (("a.weight", other), ("b.weight", None)))
    assert few.short == str(few)
    many = Plan(default, (*((f"layers.{i}.weight", other) for i in range(31)), *((f"x.{i}", None) for i in range(2))))
    assert many.short == "W4g32zA16C16; 31 tensors W8g32A16C16; 2 tensors kept as they are"
    assert Plan(default, tuple((f"x.{i}", None) for i in range(9))).short.endswith("; 9 tensors kept as they are")


def test_a_plan_in_a_file_is_a_precision(tiny_model: Path, tmp_path: Path) -> None:
    """FastDeploy's MixQuant, or a search's plan; what stands in the file counts, not its name."""
    file = tmp_path / "mix.json"
    for weights, cache in (("wint8", "int8"), ("wint4", "float8_e4m3fn")):
        file.write_text(json.dumps({"dense_quant_type": weights, "moe_quant_type": "wint4", "kv_cache_quant_type": cache}), encoding="utf-8")
        loaded = load(tiny_model, quantization=str(file), cache_dir=tmp_path, threads=1)
        assert loaded.plan.default == Plan.from_json(json.loads(file.read_text())).default and loaded.cache_spec == loaded.plan.default.cache
        assert loaded.plan.scheme_for("lm_head.weight") is None
