"""Rules and dashboard against the table they are made from. `make test-promtool` lets Prometheus' own tool judge them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml

from octavo.cli import main
from octavo.cli.monitor import Options
from octavo.errors import UsageError
from octavo.monitor import ALERTS, RECORDS, Limits, dashboard, rules
from octavo.telemetry import DEFINITIONS

NAMES = re.compile(r"\boctavo_[a-z0-9_]+")
EXPOSED = {one.exposed + end for one in DEFINITIONS.values() for end in (("_bucket",) if one.kind == "histogram" else ("",))}


def test_rules_name_only_what_is_exposed() -> None:
    found = [rule for group in yaml.safe_load(rules())["groups"] for rule in group["rules"]]
    assert len(found) == len(ALERTS) + len(RECORDS)
    for rule in found:
        assert set(NAMES.findall(rule["expr"])) <= EXPOSED, rule
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "description"} and rule["labels"]["severity"] in ("critical", "warning", "info")
    recorded = {record.name for record in RECORDS}
    assert {name for rule in found for name in re.findall(r"octavo:[a-z0-9_:]+", rule["expr"])} <= recorded


def test_the_command_has_the_limits_of_the_rules() -> None:
    assert {field.name: getattr(Options("export"), field.name) for field in fields(Limits)} == asdict(Limits())


def test_limits_reach_the_rules() -> None:
    text = rules(Limits(first_token=1.25, drift=7, job="llm"))
    assert "> 1.25" in text and "octavo_quality_drift_ratio > 7" in text and 'up{job=\\"llm\\"}' in text
    for wrong in ({"queue": 0}, {"errors": float("nan")}, {"job": 'a"b'}):
        with pytest.raises(UsageError):
            Limits(**wrong)


def test_every_metric_has_a_panel() -> None:
    board = dashboard()
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    shown = {name for panel in panels for target in panel["targets"] for name in NAMES.findall(target["expr"])}
    assert shown == EXPOSED
    assert all('instance=~"$instance"' in target["expr"] for panel in panels for target in panel["targets"])
    cells = [(x, y) for p in board["panels"] for g in [p["gridPos"]] for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert len({p["id"] for p in board["panels"]}) == len(board["panels"]) and all(p["description"] for p in panels)


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["monitor", "export", "--out", str(tmp_path / "a" / "b"), "--queue", "9", "--job", "llm"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    folder = tmp_path / "a" / "b"
    assert (folder / "octavo-rules.yml").read_text() == rules(Limits(queue=9.0, job="llm"))
    assert json.loads((folder / "octavo-dashboard.json").read_text()) == dashboard() and "job_name: llm" in (folder / "README.md").read_text()
    (tmp_path / "file").touch()
    assert main(["monitor", "export", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
