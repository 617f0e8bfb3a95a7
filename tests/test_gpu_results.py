"""benchmarks/gpu.py without a GPU: its plan, its workers, and the page that it makes of results."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from gpu_parts import crew, page, plan


def spread(value: float) -> dict[str, float]:
    return {"median": value, "min": value * 0.99, "max": value * 1.01}


def product(precision: str, rows: int, seconds: float, ratios: dict[str, float], error: float = 0.001) -> dict[str, Any]:
    """A weight of 4096 x 4096 of 8 MB."""
    peers = {name: {"seconds": spread(seconds * ratio), "ratio": spread(ratio), "error": error, "alike": True, "captured": True}
             for name, ratio in ratios.items()}
    return {"id": f"{precision} {rows}", "kind": "linear", "precision": precision, "shape": "Llama-3-8B o", "refused": {"gemlite A16W4": "not installed"},
            "rows_found": [{"rows": rows, "seconds": spread(seconds), "error": 0.001, "captured": True, "peers": peers, "bytes": 8 << 20,
                            "operations": 2 * rows * 4096**2}]}


def result(**parts: list[dict[str, Any]]) -> dict[str, Any]:
    about = {"gpu": "an invented GPU", "driver": "1.2", "versions": {"torch": "2.11"}, "commit": "abc", "date": "2026-01-02"}
    return {"parts": {name: {"records": records, "circumstances": about, "took": 3.0, "left_out": 0} for name, records in parts.items()}}


CEILINGS = {"id": "ceilings", "kind": "ceilings", "ceilings": {"copy": 4.0e12, "read": 4.2e12, "bf16": 8e14, "fp8": 1.5e15, "int8": 1.4e15}}


def lines(found: dict[str, Any]) -> dict[str, list[str]]:
    return {row[0]: row for row in page.tables(found)[0].rows}


def test_bars_of_products() -> None:
    fast, slow = (8 << 20) / (0.85 * 4.2e12), (8 << 20) / (0.7 * 4.2e12)
    good = result(peers=[CEILINGS, product("W4A16", 1, fast, {"bf16 cuBLAS": 3.1, "torch int4pack_mm": 1.2})])
    assert lines(good)["2. W4A16, one row"][1:] == ["1 of 1 shapes; least times the best peer 1.20", ">= 80% of bandwidth and >= 1.1x", "yes"]
    for bad in (product("W4A16", 1, slow, {"bf16 cuBLAS": 3.1}), product("W4A16", 1, fast, {"bf16 cuBLAS": 3.1, "torch int4pack_mm": 1.05})):
        assert lines(result(peers=[CEILINGS, bad]))["2. W4A16, one row"][3] == "no"
    work = 2 * 4096**3
    many = [product("FP8 blocks", 4096, work / (0.9 * 1.5e15), {"torch _scaled_mm": 0.9}),
            product("W8A8", 4096, work / (0.5 * 1.4e15), {"torch _int_mm": 1.01})]
    found = lines(result(peers=[CEILINGS, *many]))
    assert found["2. FP8 blocks, 4096 rows"][3] == "yes" == found["2. W8A8, 4096 rows"][3]
    without = lines(result(peers=[product("W4A16", 1, fast, {"bf16 cuBLAS": 3.1})]))
    assert without["2. W4A16, one row"][3] == "no"  # no ceiling was measured: nothing is proven


def test_a_peer_with_other_numbers_is_no_peer() -> None:
    row = product("W4A16", 1, 1e-5, {"torch int4pack_mm": 0.5}, error=0.7)["rows_found"][0]
    row["peers"]["bf16 cuBLAS"] = {"seconds": spread(2e-5), "ratio": spread(2.0), "error": 0.002, "alike": True, "captured": True}
    assert page.best_peer(row) == ("bf16 cuBLAS", 2.0)


def test_bars_of_models_checks_and_quality() -> None:
    model: list[dict[str, Any]] = [
        {"id": "load 4bit", "what": "load", "scheme": "4bit", "plan": "W4Afp8C16", "weights": 5_000_000_000, "peak": 5_600_000_000, "load_seconds": 9.0},
        {"id": "decode 1", "what": "decode", "batch": 1, "tokens_per_second": {"16bit": spread(230), "8bit": spread(400), "4bit": spread(690)},
         "ratios": {"8bit": spread(1.74), "4bit": spread(2.7)}, "plans": {"16bit": "W16A16C16"}},
        {"id": "overhead 1, 4bit", "what": "overhead", "batch": 1, "scheme": "4bit", "step": 1.45e-3, "graph": 1.42e-3, "kernels": 1.42e-3,
         "outside_kernels": 0.02, "outside_graph": 0.02, "launches": 330.0, "largest": [["multiply_codes", 0.7]]},
        {"id": "decode 16", "error": "RuntimeError: no"},
    ]
    check = [{"id": "int4 g128 x bf16", "checks": 20, "failed": [], "worst": 1e-6, "tolerance": 2e-4},
             {"id": "rope", "checks": 3, "failed": ["1 row: error 3e-1 over 3e-6"], "worst": 0.3, "tolerance": 3e-6}]
    quality = [{"id": "quality 16bit", "scheme": "16bit", "against": "native", "model": "a model", "perplexity": {"value": 9.02}, "kl": {"mean": 2e-4},
                "original_perplexity": {"value": 9.01}, "perplexity_ratio": {"value": 1.001, "low": 0.9995, "high": 1.0025}, "top1_agreement": {"value": 0.99}}]
    found = lines(result(check=check, model=model, quality=quality))
    assert {name: row[3] for name, row in found.items()} == {
        "1. kernels against float64": "1 fail", "3. decoding, 4bit over 16bit": "no", "3. decoding, 8bit over 16bit": "yes",
        "3. outside kernels, 4bit": "yes", "3. peak while loading, 4bit": "no", "4. quality as on the CPU": "yes"}


def test_the_page_states_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "page.md"
    assert not page.write(tmp_path / "gpu.json", target) and page.markdown({"parts": {}}) is None and not target.exists()
    (tmp_path / "gpu.json").write_text(json.dumps(result(peers=[CEILINGS, product("W4A16", 1, 1e-5, {"bf16 cuBLAS": 2.0})])))
    assert page.write(tmp_path / "gpu.json", target)
    text = target.read_text()
    assert "an invented GPU, driver 1.2, torch 2.11, commit abc, 2026-01-02" in text and "gemlite A16W4: not installed" in text
    assert "| W4A16 | Llama-3-8B o | 1 | 10.0 | 839 GB/s | 20% | 2.00 (bf16 cuBLAS) |" in text
    assert "Llama-3-8B's shape" not in text and "Quality" not in text and "float64" not in text


def test_the_plan_asks_for_all_rows_and_shares_out_the_time() -> None:
    options = plan.Options()
    for part in ("check", "peers", "model", "warm", "ways"):
        found = plan.cases(part, options)
        assert len({case["id"] for case in found}) == len(found) > 10
    assert {1, 2, 3, 4, 5, 6, 7, 8, 16, 33, 64, 128, 512, 4096} <= set(plan.cases("check", options)[0]["rows"])
    ends = plan.deadlines(plan.USUAL, 500)
    assert list(ends) == ["check", "warm", "peers", "model", "quality"] and abs(ends["quality"] - 500) < 1e-6
    assert list(plan.deadlines(("quality",), 100).values()) == [100] and list(plan.deadlines(("ways",), 100)) == ["warm", "ways"]
    assert {case["module"] for case in plan.cases("warm", plan.Options(parts=("ways",)))} == {"peer_ways"}


WORKER = """
import json, sys, time
for line in sys.stdin:
    case = json.loads(line)
    if case["id"] == "dies":
        sys.exit(7)
    if case["id"] == "hangs":
        time.sleep(60)
    print(json.dumps({"saw": case["id"]}), flush=True)
"""


def test_a_worker_that_dies_or_hangs_costs_its_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu.py").write_text(WORKER)
    monkeypatch.setattr(crew, "PARENT", tmp_path / "gpu.py")
    found: dict[str, Any] = {}
    names = ["one", "dies", "two", "hangs", "three"]
    left = crew.run_all([{"id": name} for name in names], 1, time.monotonic() + 60, lambda case, record: found.update({case["id"]: record}), seconds=1.0)
    assert left == 0 and [found[name].get("saw") for name in names] == ["one", None, "two", None, "three"]
    assert "died (exit status 7)" in found["dies"]["error"] and "no answer within 1 s" in found["hangs"]["error"]
    assert crew.run_all([{"id": "late"}], 1, time.monotonic() - 1, lambda case, record: pytest.fail("it ran"), seconds=1.0) == 1
