"""The rows of the comparison with other engines: merged by name, held against the bar of the best peer, shown as written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import comparison  # noqa: E402  (a script folder, not a package)
import report  # noqa: E402


def row(**more: Any) -> dict[str, Any]:
    return {"what": "decode batch 1", "model": "SmolLM2-135M", "scheme": "4bit", "ours": 200.0, "peer": 100.0, "peer_name": "llama.cpp Q4_0",
            "ratio": 2.0, "ratio_min": 1.9, "ratio_max": 2.1, "unit": "tokens/s", **more}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "circumstances", lambda: {"date": "2026-01-02", "commit": "abc", "machine": "a machine", "threads": 2})
    return tmp_path


def test_rows_of_the_same_name_are_replaced_and_others_kept(folder: Path) -> None:
    report.merge_rows([row(what="server"), row(), row(peer_name="OpenVINO GenAI int4", ratio=1.7, ratio_min=1.6, ratio_max=1.8)])
    report.merge_rows([row(ratio=3.0, ratio_max=3.5, commit="later")])
    kept = json.loads((folder / "results" / "peers.json").read_text())
    assert [(r["what"], r["peer_name"], r["ratio"], r["commit"]) for r in kept] == [
        ("decode batch 1", "OpenVINO GenAI int4", 1.7, "abc"), ("decode batch 1", "llama.cpp Q4_0", 3.0, "later"), ("server", "llama.cpp Q4_0", 2.0, "abc")]


def test_the_verdict_is_about_the_best_peer(folder: Path) -> None:
    report.merge_rows([row(), row(peer_name="OpenVINO GenAI int4", peer=118.0, ratio=1.7, ratio_min=1.6, ratio_max=1.8)])
    text = (folder / "docs" / "performance.md").read_text()
    assert "| decode batch 1 | 4bit | 200 tokens/s | OpenVINO GenAI int4 118 | **1.70** (1.60 to 1.80) | 1.8 | 2.3 | no |" in text


def test_rows_of_two_machines_are_told_apart(folder: Path) -> None:
    report.merge_rows([row(machine="new"), row(machine="old", peer_name="OpenVINO GenAI int4", ratio=1.0, ratio_min=1.0, ratio_max=1.0)])
    text = (folder / "docs" / "performance.md").read_text()
    old, new = ("A", "B") if "on: A, old; B, new" in text else ("B", "A")
    assert f"| decode batch 1 | {new} | 4bit | 200 tokens/s | llama.cpp Q4_0 100 | **2.00** (1.90 to 2.10) | 1.8 | 2.3 | yes |" in text
    assert f"| decode batch 1 | {old} | 4bit | 200 tokens/s | OpenVINO GenAI int4 100 | **1.00** (1.00 to 1.00) | 1.8 | 2.3 | no |" in text


def test_verdicts() -> None:
    assert [comparison.verdict(row(ratio=ratio)) for ratio in (1.79, 1.8, 2.3)] == ["no", "yes", "aim"]
    assert [comparison.verdict(row(what="first token", better="lower", bar=3, aim=1.5, ratio=ratio)) for ratio in (3.1, 2.0, 1.5)] == ["no", "yes", "aim"]
    assert comparison.verdict(row(what="unheard of")) == "" == comparison.verdict(row(scheme="16bit"))


def test_a_disturbed_row_proves_no_bar(folder: Path) -> None:
    report.merge_rows([row(others=0.2), row(what="prefill 512", others=0.2)])
    text = (folder / "docs" / "performance.md").read_text()
    assert "| 1.8 | 2.3 | unproven (disturbed) |" in text and "| 2.5 | 3.5 | no (disturbed) |" in text


def test_rows_that_lack_something_are_refused(folder: Path) -> None:
    wrong = row()
    del wrong["ratio_min"]
    with pytest.raises(ValueError, match="lacks ratio_min"):
        report.merge_rows([wrong])
    with pytest.raises(ValueError, match="outside"):
        report.merge_rows([row(ratio=9.0)])
    assert not (folder / "results" / "peers.json").exists()
