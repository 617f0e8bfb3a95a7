"""`octavo validate` on a sound and on a ruined quantization of a real small model, served for real; and its limits, alerts and verdicts by themselves."""

from __future__ import annotations

import hashlib
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.cli import main
from octavo.errors import UsageError
from octavo.monitor import ALERTS, rules
from octavo.quality import Comparison, EvaluationText, Rows, Windows
from octavo.traffic import Closed, Difference, Load, Recording, Result, Sample, Target, random_words
from octavo.validate import Limits, Line, Report, badge, markdown, read_limits
from octavo.validate.accuracy import accuracy
from octavo.validate.alerts import alerts
from octavo.validate.documented import documented
from octavo.validate.limits import LINES
from octavo.validate.load import judge, patient, wilson
from octavo.validate.ratios import ratio, turned

QUICK = ["--users", "2", "--requests", "24", "--runs", "1", "--prompt-tokens", "40", "--output-tokens", "8", "--context", "128", "--windows", "12"]
# How fast a loaded test machine is says nothing about Octavo: only what does not depend on it is judged in whole runs, `judge` is tested below.
CALM = "latency_ratio = false\nrequests_ratio = false\ncost_ratio = false\ncost = 1e9\nmemory_ratio = 3\nrequests_per_s = 0.001\n" \
       "latency_p50 = 500\nlatency_p95 = 500\nlatency_p99 = 500\nfirst_token_p95 = 500\n"


def validated(folder: Path, tiny_model: Path, shared_data: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status and the report of a run whose files go to `folder`."""
    stories = (shared_data / "text" / "tinystories-a.jsonl").read_text().splitlines(keepends=True)[:40]
    (folder / "stories.jsonl").write_text("".join(stories))
    (folder / "limits.toml").write_text(CALM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        status = main(["validate", str(tiny_model), "--text", str(folder / "stories.jsonl"), "--limits", str(folder / "limits.toml"), "--out",
                       str(folder / "out"), *QUICK, *options])
    return status, json.loads((folder / "out" / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_good_quantization_passes(tiny_model: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "export", "--out", str(tmp_path / "alerts")]) == 0
    status, report = validated(tmp_path, tiny_model, shared_data, "--quantization", "8bit", "--against", str(tiny_model), "--alerts", str(tmp_path / "alerts"),
                               "--cost-per-hour", "2")
    lines = {line["name"]: line for line in report["lines"]}
    assert set(lines) == set(LINES)
    assert status == 0 and report["passed"] and report["verdict"] == "passed 13 of 13", report["verdict"]
    assert 0 < lines["latency_p50"]["value"] <= lines["latency_p95"]["value"] <= lines["latency_p99"]["value"]
    assert 0 < lines["kl"]["low"] < lines["kl"]["value"] < lines["kl"]["high"] < 0.1 and report["loss"]["kl"]["mean"] == lines["kl"]["value"]
    assert lines["load"]["value"] == 0 and "2 users" in lines["load"]["evidence"] and "24 requests, 0 failed" in lines["load"]["evidence"]
    assert lines["cost"]["value"] > 0 and 10 < lines["memory"]["value"] < 1000
    digest = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    settings = report["settings"]
    assert settings["model"]["sha256"]["model.safetensors"] == digest and digest[:12] in lines["settings"]["evidence"]
    assert settings["model"]["asked"] == "8bit" and settings["load"]["endpoint"] == "completions" and settings["limits"]["cost"] == 1e9
    assert [side["label"] for side in report["load"]] == ["original", "model"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r'(src|href|@import|url\()\s*=?\s*["\']?(https?:)?//', page) and "<script" not in page and page.count("<svg") == 5
    assert all(line["title"] in page for line in report["lines"])
    assert ElementTree.fromstring((tmp_path / "out" / "badge.svg").read_text()).get("aria-label") == "octavo validate: passed 13 of 13"
    line = (tmp_path / "out" / "badge.md").read_text().strip()
    assert line == "[![octavo validate: passed 13 of 13](badge.svg)](report.html)" and line in capsys.readouterr().out


def test_a_bad_quantization_fails_where_it_is_bad(tiny_model: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = validated(tmp_path, tiny_model, shared_data, "--quantization", "W2A16", "--cost-per-hour", "2", "--alerts", str(tmp_path / "nowhere"))
    results = {line["name"]: line["status"] for line in report["lines"]}
    assert status == 1 and not report["passed"] and report["verdict"] == "failed 3 of 13"
    assert {name for name, result in results.items() if result == "fail"} == {"kl", "perplexity", "agreement"}
    assert {name for name, result in results.items() if result == "not measured"} == {"alerts"}
    assert "Accuracy: KL divergence: fail" in capsys.readouterr().out


def test_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text('kl = 0.02\nlatency_p95 = 2\nlatency_ratio = false\nrequired = ["kl", "alerts"]\n')
    limits = read_limits(path)
    assert (limits.kl, limits.latency_p95, limits.latency_ratio, limits.required) == (0.02, 2.0, None, ("kl", "alerts"))
    assert replace(limits, kl=Limits().kl).agreement == Limits().agreement
    (tmp_path / "limits.json").write_text('{"kl": null, "cost": 0.5}')
    assert read_limits(tmp_path / "limits.json").kl is None


def test_the_documented_limits_are_the_defaults(tmp_path: Path) -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "validate.md").read_text()
    path = tmp_path / "limits.toml"
    path.write_text(docs.split("```toml\n")[1].split("```")[0])
    assert read_limits(path) == Limits() and all(f"\n{name} = " in f"\n{path.read_text()}" for name in vars(Limits()))
    assert all(f"`{name}`" in docs for name in LINES)


@pytest.mark.parametrize(("text", "said"), [("kll = 1", "kll"), ("kl = true", "True"), ('kl = "low"', "low"), ("kl = -1", "kl"), ("kl = nan", "kl"),
                                            ('required = ["speed"]', "speed"), ("required = 3", "list"), ("kl 3", "TOML"),
                                            ("latency_p95 = 4000", "milliseconds"), ('latency_p95 = "2s"', "seconds"), ("agreement = 85", "percent"),
                                            ("errors = 2", "share"), ("perplexity_ratio = 0.005", "times the original's"), ("latency_95 = 2", "latency_p95")])
def test_wrong_limits_are_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read_limits(path)
    assert error.value.where.startswith(str(path))


@pytest.mark.parametrize(("line", "said"), [
    (["m"], "--against"), (["m", "--quantization", "9bits"], "9bits"), (["m", "--against", "o", "--limits", "/no/l.toml"], "l.toml"),
    (["m", "--against", "o", "--users", "0"], "users"), (["m", "--against", "o", "--duration", "soon"], "--duration"),
    (["m", "--against", "o", "--text", "/no/text"], "/no/text"), (["m", "--against", "o", "--prompts", "/no/p.jsonl"], "p.jsonl"),
    (["m", "--against", "o", "--serve-option=--max-bach=9"], "--max-bach"), (["m", "--against", "o", "--serve-option=--port=1"], "--port"),
    (["m", "--against", "o", "--serve-option=--api-key=secret"], "OCTAVO_API_KEY"),
])
def test_mistakes_are_one_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["validate", *line]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and said in told[0] and not list(tmp_path.iterdir())


def test_alerts(tmp_path: Path) -> None:
    good = rules()
    cases = {"pass": good, "is no YAML": "groups: [", "is no file of Prometheus' rules": "- a", "missing: OctavoNaN": good.replace("OctavoNaN", "Other"),
             "octavo_gone_total": good.replace("octavo_nan_failures_total", "octavo_gone_total"), "without a severity": good.replace("severity", "rank")}
    for said, text in cases.items():
        (tmp_path / "octavo-rules.yml").write_text(text)
        line = alerts(tmp_path)
        assert line.status == ("pass" if said == "pass" else "fail") and (said == "pass" or said in line.evidence), (said, line.evidence)
    assert line.value == len(ALERTS)
    assert alerts(tmp_path / "other.yml").status == "not measured"


def run(latency: float, failed: int = 0, requests: int = 400) -> Result:
    """One user who gets an answer of ten tokens in about `latency` seconds, again and again."""
    samples, due = [], 0.0
    for number, took in enumerate(latency * np.random.default_rng(0).uniform(0.9, 1.1, requests)):
        sample = Sample(number, due, due, due + took / 2, due + took, due + took, 1, 10)
        if number < failed:
            sample.error, sample.detail = "timeout", "no end"
        samples.append(sample)
        due += took
    recording = Recording(Load(Closed(1), duration=max(due, 1.0)), samples, 0.0, max(due, 1.0))
    return Result.of("x", Target("http://h:1", "m"), random_words(3, 10, 2), recording, None, {"memory": {"peak_rss": int(1e8 * latency)}})


def test_load_is_judged() -> None:
    def statuses(after: Result, limits: Limits) -> dict[str, str]:
        return {line.name: line.status for line in judge([run(1.0)], [after], limits, 3.6)}

    timed = {"latency_p50", "latency_p95", "first_token_p95", "requests_per_s", "cost", "memory"}
    assert set(statuses(run(1.0), Limits()).values()) == {"pass"}
    assert {name for name, status in statuses(run(1.3), Limits()).items() if status == "fail"} == timed
    assert set(statuses(run(0.5), Limits()).values()) == {"pass"}, "faster is no fault"
    assert {name for name, status in statuses(run(1.0), Limits(latency_p95=0.5, cost=0.05)).items() if status == "fail"} == {"latency_p95", "cost"}
    assert statuses(run(1.0, failed=8), Limits())["load"] == "fail"
    assert statuses(run(1.0), Limits(latency_p99=None))["latency_p99"] == "not measured", "four requests beyond p99 say nothing of a ratio"
    cost = next(line for line in judge([run(1.0)], [run(0.5)], Limits(), 3.6) if line.name == "cost")
    assert cost.value == pytest.approx(50, rel=0.1) and cost.original == pytest.approx(100, rel=0.1) and 0.4 < cost.low < 0.5 < cost.high < 0.6


def test_a_ratio_is_judged_where_its_interval_says_something() -> None:
    def judged(low: float, high: float, limit: float | None = 1.1) -> tuple[bool | None, str]:
        one = ratio(Difference("x", 1.0, 1.0, math.sqrt(low * high), low, high, "no difference"), limit, most=True)
        return one.kept, one.limit

    assert judged(0.9, 1.05) == (True, "≤ 1.1 x") and judged(1.0, 1.3) == (True, "≤ 1.1 x") and judged(1.2, 1.3) == (False, "≤ 1.1 x")
    assert judged(1.2, 30.0) == (False, "≤ 1.1 x") and judged(0.01, 1.0) == (True, "≤ 1.1 x"), "wide, but all on one side"
    assert judged(0.5, 2.0) == (None, "(≤ 1.1 x not judged)") and judged(1e-87, 1e87) == (None, "(≤ 1.1 x not judged)")
    assert judged(math.nan, math.nan) == (None, "(≤ 1.1 x not judged)") and judged(0.9, 1.0, None) == (None, "")
    least = ratio(Difference("x", 1.0, 1.0, 0.9, 0.85, 0.93, "lower"), 0.95, most=False)
    assert least.kept is False and "surely beyond 0.95" in least.said and least.limit == "≥ 0.95 x"
    assert turned(Difference("x", 1.0, 2.0, 2.0, 1.6, 2.5, "higher")).low == pytest.approx(0.4)


def test_a_share_of_few_requests_is_not_known_well() -> None:
    assert wilson(0, 4) == (0.0, pytest.approx(0.49, abs=0.01)) and wilson(0, 0)[0] != 0
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.404, abs=0.001), pytest.approx(0.596, abs=0.001))


def test_a_slow_model_gets_more_time() -> None:
    asked: list[tuple[float | None, int]] = []

    def once(load: Load, already: int) -> Result:
        asked.append((load.duration, already))
        return run(1.0, requests=3 if len(asked) > 2 else 0)

    assert patient(once, Load(Closed(20), 10.0)).summary.requests == 3
    assert asked == [(10.0, 0), (40.0, 1), (120.0, 2)], "each time longer, with prompts that no prefix cache knows"


def test_accuracy_is_judged_by_the_unfavourable_end() -> None:
    text = EvaluationText("t", ["words"])
    kl = np.tile([0.0, 0.16], 40)  # 0.08 on average; by windows of one token each it may be 0.1
    rows = Rows(kl, np.ones(80), np.ones(80), np.ones(80, bool))
    comparison = Comparison(Windows(np.zeros((80, 2), np.int32), np.ones(80, int)), rows)
    line, perplexity, agreement = accuracy(comparison, text, Limits(kl=0.09), None)
    assert line.value < 0.09 < line.high and line.status == "fail" and "measure more text" in line.evidence
    assert (perplexity.status, agreement.status) == ("pass", "pass")
    assert accuracy(comparison, text, Limits(kl=0.12), None)[0].status == "pass"
    assert accuracy(comparison, text, Limits(kl=None), None)[0].status == "not measured"
    assert {line.status for line in accuracy(comparison, text, Limits(kl=1.0), {"sha256": text.sha256})} == {"fail"}, "the text was calibrated on"
    broken = Comparison(comparison.windows, Rows(np.full(80, np.inf), rows.original, np.full(80, np.nan), rows.same_top))
    assert [line.status for line in accuracy(broken, text, Limits(), None)] == ["fail", "fail", "pass"]


def test_settings_must_be_those_of_the_files() -> None:
    one = {"sha256": {"a": "1" * 64}, "scheme": "W8A16", "cache": "bf16", "codec": "safetensors", "asked": "8bit"}
    assert documented(one, one).status == "pass"
    receipt = {"original": {"sha256": {"a": "2" * 64}}}
    assert documented({**one, "receipt": receipt}, one).status == "fail"
    assert documented({**one, "receipt": receipt}, {**one, "sha256": {"a": "2" * 64}}).status == "pass"
    assert "changed" in documented({**one, "problem": "something has changed"}, one).evidence


def test_what_is_required_must_be_measured() -> None:
    lines = [Line("kl", "KL", "not measured", "no text"), Line("alerts", "Alerts", "not measured", "none"), Line("load", "Load", "pass", "")]
    report = Report("m", "o", Limits(), lines)
    assert not report.passed and report.verdict == "not measured: kl, perplexity, agreement, settings" and "#8a6100" in badge(report)
    assert Report("m", "o", Limits(required=()), lines).verdict == "passed 1 of 3, 2 not measured"
    assert markdown(Report("m", "o", Limits(required=("kl",)), lines), "b.svg", "r.html") == "[![octavo validate: not measured: kl](b.svg)](r.html)"
