"""`octavo bench` against a real server of a real small model, and its reports."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pytest

from octavo.bench import compare, html, rows, saturation, sweep
from octavo.bench.table import markdown
from octavo.cli import main
from octavo.errors import UsageError
from octavo.traffic import Arrivals, Closed, Load, Recording, Result, Sample, ServiceLevel, Target, random_words, read_results

QUICK = ["--endpoint", "completions", "--prompt-tokens", "60", "--output-tokens", "12", "--users", "3", "--warmup", "0s"]


@pytest.fixture(scope="module")
def measured(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of two precisions, each in a process of its own."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        status = main(["bench", str(tiny_model), "--quantizations", "16bit,8bit", *QUICK, "--requests", "60", "--slo", "latency=60s", "--cost-per-hour", "2",
                       "--out", str(folder / "r.json"), "--csv", str(folder / "r.csv"), "--html", str(folder / "r.html")])
    assert status == 0
    return folder


def test_two_precisions_side_by_side(measured: Path) -> None:
    results = read_results(measured / "r.json")
    assert [r.label for r in results] == ["16bit", "8bit"]
    for result in results:
        s = result.summary
        assert s.requests == 60 and not s.errors and s.answer_tokens == 12 and s.goodput == pytest.approx(60 / s.seconds)
        assert 0 < s.ttft.p50 < s.latency.p50 <= s.latency.p95 <= s.latency.p99 <= s.latency.max
        assert s.tokens_per_s == pytest.approx(60 * 12 / s.seconds, rel=3 / 60)  # what 3 users were in the middle of at the ends counts on one side
        assert abs(s.prompt_tokens - 60) < 20 and 10e6 < result.server["memory"]["peak_rss"] < 1e9
    first, second = rows(results, 2.0)
    assert first["speed"] == 1 and second["size_reduction"] > 1.5
    assert second["kl"] > 0 and second["agreement"] < 1 and second["cost"] == pytest.approx(2 / 3600 / results[1].summary.tokens_per_s * 1e6)
    assert results[0].prompts["sha256"] == results[1].prompts["sha256"], "both were asked the same"


def test_the_files(measured: Path) -> None:
    table = list(csv.DictReader((measured / "r.csv").open()))
    assert [row["label"] for row in table] == ["16bit", "8bit"] and float(table[1]["size_reduction"]) > 1.5
    page = (measured / "r.html").read_text()
    parser = _Page()
    parser.feed(page)
    assert not parser.open and parser.charts >= 4
    assert not re.search(r'(src|href|@import|url\()\s*=?\s*["\']?(https?:)?//', page), "the page asks the network for nothing"
    assert "<script" not in page and "16bit" in page


class _Page(HTMLParser):
    """What is open, and how many charts there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.charts += tag == "svg"
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_who_ends_the_bench_ends_its_server(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo", "bench", str(tiny_model), "--quantizations", "16bit", *QUICK, "--duration", "60s", "--no-quality"]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path, "OCTAVO_CACHE": str(tmp_path)}) as bench:
        end = time.monotonic() + 60
        while not (children := psutil.Process(bench.pid).children()):
            assert time.monotonic() < end and bench.poll() is None
            time.sleep(0.05)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 128 + signal.SIGTERM
    psutil.wait_procs(children, timeout=20)
    assert not [c for c in children if c.is_running()]


def test_compare(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(measured / "r.json"), str(measured / "r.json"), "--json"]) == 0
    pairs = json.loads(capsys.readouterr().out)
    assert [(p["a"], p["b"], p["different"]) for p in pairs] == [("16bit", "16bit", False), ("8bit", "8bit", False)]
    assert all(f["ratio"] == 1 or f["a"] == 0 for p in pairs for f in p["figures"])  # tokens that arrive together are 0 s apart
    assert main(["bench", "compare", str(measured / "r.json")]) == 0
    assert "8bit against 16bit" in (told := capsys.readouterr().out) and "latency p50" in told and "--runs 3" in told


@pytest.mark.parametrize(("line", "said"), [
    (["bench"], "MODEL"), (["bench", "m", "x"], "what is 'x' for"), (["bench", "m", "--quantizations", "8bit,9bits"], "9bits"),
    (["bench", "m", "--quantizations", "8bit,8bit"], "different precisions"), (["bench", "m", "--url", "http://x", "--quantizations", "8bit"], "--url"),
    (["bench", "m", "--duration", "long"], "--duration"), (["bench", "m", "--users", "0"], "users"), (["bench", "m", "--rate", "0"], "rate"),
    (["bench", "m", "--slo", "fast"], "--slo"), (["bench", "m", "--sweep", "--rate", "3"], "--sweep"), (["bench", "m", "--out", "/no/such/r.json"], "missing"),
    (["bench", "m", "--prompts", "/no/such.jsonl"], "such.jsonl"), (["bench", "--url", "http://127.0.0.1:9"], "no answer"),
    (["bench", "/no/such/model", "--requests", "1"], "/no/such/model"), (["bench", "compare"], "compare"), (["bench", "compare", "/no/r.json"], "r.json"),
    (["bench", "compare", "a", "b", "--confidence", "0.2"], "--confidence"), (["bench", "m", "--requests", "0"], "--requests"),
])
def test_mistakes_are_one_line(line: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) in (1, 2)
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1] and told[-1].startswith("octavo: ")


def result(label: str, rate: float, latency: float = 1.0, seconds: float = 10.0) -> Result:
    """A run whose answers of ten tokens come at even distances."""
    load = Load(Closed(1), duration=seconds)
    samples = []
    for number in range(int(rate * seconds / 10)):
        due = 10 / rate * number
        samples.append(Sample(number, due, due, due + latency / 2, due + latency, due + latency, 1, 10))
    recording = Recording(load, samples, 0.0, seconds)
    return Result.of(label, Target("http://h:1", "m"), random_words(3, 10, 2), recording, ServiceLevel(latency=1.5), {})


def test_a_sweep_ends_where_more_users_give_nothing() -> None:
    asked: list[int] = []

    def run(arrivals: Arrivals) -> Result:
        assert isinstance(arrivals, Closed)
        asked.append(arrivals.users)
        return result(f"x, {arrivals}", 100.0 * min(arrivals.users, 7), latency=max(1.0, arrivals.users / 7))

    found = list(sweep(run, Closed(500)))
    assert asked == [1, 2, 4, 8, 16, 32]
    at = saturation(found)
    assert at.label == "x, 8 users" and at.kept == "x, 8 users"
    assert "<h2>Sweep</h2>" in html(found, sweeping=True)
    asked.clear()
    assert len(list(sweep(run, Closed(5)))) == 4 and asked == [1, 2, 4, 5]


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UsageError, match="one side only"):
        compare([result("a", 100)], None)
    with pytest.raises(UsageError, match="no label in common"):
        compare([result("a", 100), result("b", 100)], [result("c", 100)])
    (pair,) = compare([result("a", 100)], [result("b", 100)])
    assert (pair.a, pair.b) == ("a", "b")


def test_a_server_that_tells_nothing_leaves_columns_out() -> None:
    text = markdown(rows([result("a", 100), result("b", 200)]))
    assert "KL" not in text and "smaller" not in text, "columns nobody has a number for"
    assert "| 1.99x |" in text and text.count("\n") == 4
