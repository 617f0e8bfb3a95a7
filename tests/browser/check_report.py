"""`octavo validate` on the demo model, in 8 bits and deliberately ruined in 2, and both reports in a real browser: `make test-browser`.

How fast a loaded machine is says nothing about Octavo, so limits of speed are switched off here; the load is real, but short.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, dress, faults, picture, requested
from conftest import find_smollm2
from selenium.webdriver.common.by import By

PATIENCE = 600  # seconds, on a machine that has other work
LIMITS = """latency_p50 = 600
latency_p95 = 600
latency_p99 = 600
first_token_p95 = 600
latency_ratio = false
requests_per_s = 0.0001
requests_ratio = false
cost = 1e9
cost_ratio = false
memory_ratio = 3
required = ["kl", "perplexity", "agreement", "load", "settings", "alerts"]
"""
ACCURACY = {"Accuracy: KL divergence", "Accuracy: perplexity ratio", "Accuracy: same first choice"}
GOOD, BAD = "8bit", "W2g64A16"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, Path]]:
    """Precision -> exit status and folder."""
    model, folder = find_smollm2(), tmp_path_factory.mktemp("reports")
    assert model is not None, "the demo model is missing"
    (folder / "limits.toml").write_text(LIMITS)
    octavo = [sys.executable, "-m", "octavo"]
    subprocess.run([*octavo, "monitor", "export", "--out", str(folder / "alerts")], check=True, timeout=PATIENCE)
    found = {}
    for precision in (GOOD, BAD):
        done = subprocess.run([*octavo, "validate", str(model), "--quantization", precision, "--limits", str(folder / "limits.toml"), "--alerts",
                               str(folder / "alerts"), "--users", "2", "--requests", "6", "--runs", "1", "--prompt-tokens", "24", "--output-tokens", "12",
                               "--cost-per-hour", "1", "--cache-dir", os.environ.get("OCTAVO_CACHE") or str(folder / "cache"),
                               "--out", str(folder / precision)], timeout=PATIENCE)
        found[precision] = done.returncode, folder / precision
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.mark.parametrize(("precision", "status", "verdict", "failed"), [(GOOD, 0, "passed 13 of 13", set()), (BAD, 1, "failed 3 of 13", ACCURACY)])
def test_the_report_of_a_good_and_of_a_bad_quantization(
    precision: str, status: int, verdict: str, failed: set[str], reports: dict[str, tuple[int, Path]], browser: Any,
) -> None:
    ended, folder = reports[precision]
    report = json.loads((folder / "report.json").read_text())
    assert ended == status and report["passed"] is (status == 0) and report["verdict"] == verdict, report["verdict"]
    page = (folder / "report.html").as_uri()
    requested(browser)
    browser.execute_cdp_cmd("Network.enable", {})
    browser.get(page)
    assert verdict in browser.find_element(By.TAG_NAME, "h1").text and report["precision"].partition(";")[0] in browser.title
    rows = {(cells := [cell.text for cell in row.find_elements(By.TAG_NAME, "td")])[0]: cells[1] for row in browser.find_elements(By.CSS_SELECTOR, "tbody tr")}
    assert len(rows) == 13 and {name for name, said in rows.items() if said == "✗ fail"} == failed
    assert {name for name, said in rows.items() if said == "✓ pass"} == rows.keys() - failed
    said = browser.find_element(By.TAG_NAME, "body").text
    assert all(line["evidence"] in said for line in report["lines"]), "evidence is left out"
    charts = browser.find_elements(By.TAG_NAME, "svg")
    assert len(charts) == 5 and all(chart.size["height"] > 100 for chart in charts) and not browser.find_elements(By.TAG_NAME, "script")
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 27)")):
        dress(browser, scheme)
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == paper
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.set_window_size(1100, height + 150)
        picture(browser, f"report-{'good' if status == 0 else 'bad'}-{scheme}")
        held = faults(browser)
        assert not held, held
    browser.set_window_size(400, 900)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
    for summary in browser.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    assert report["settings"]["model"]["sha256"] and all(digest in browser.find_element(By.TAG_NAME, "body").text
                                                         for digest in report["settings"]["model"]["sha256"].values())
    browser.get((folder / "badge.svg").as_uri())
    assert browser.find_element(By.TAG_NAME, "svg").get_attribute("aria-label") == f"octavo validate: {verdict}"
    assert requested(browser) == {page, (folder / "badge.svg").as_uri()}, "it asked the network for something"
    assert not browser.get_log("browser")
