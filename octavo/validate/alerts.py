"""Alerts set up: a rules file for Prometheus that holds the alerts of `octavo monitor export`, on metrics that this server has."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ..monitor import ALERTS, RECORDS
from ..telemetry import DEFINITIONS
from .lines import Line

TITLE = "Alerts set up"
RULES = "octavo-rules.yml"
EXPORT = "octavo monitor export writes them, --alerts says where they lie"
METRIC = re.compile(r"\boctavo[_:][a-z0-9_:]+")
ENDS = ("", "_bucket", "_sum", "_count")


def alerts(path: Path) -> Line:
    """The line for a rules file, or for the folder that `octavo monitor export` made."""
    path = path.expanduser()
    path = path / RULES if path.is_dir() else path
    try:
        content = path.read_bytes()
    except OSError as error:
        return Line("alerts", TITLE, "not measured", f"no rules at {path} ({error.strerror}): {EXPORT}")
    problems, found = _examine(content)
    told = f"{path} (sha256 {hashlib.sha256(content).hexdigest()[:12]}): {found} of {len(ALERTS)} alerts"
    verdict = _promtool(path)
    if verdict is not None:
        told += "; promtool accepts it" if not verdict else ""
        problems += [f"promtool: {verdict}"] if verdict else []
    else:
        told += "; promtool is not installed, so queries were not parsed by Prometheus itself"
    return Line("alerts", TITLE, "fail" if problems else "pass", "; ".join([*problems, told]), float(found), "alerts", f"all {len(ALERTS)}")


def _examine(content: bytes) -> tuple[list[str], int]:
    """What is wrong, and how many of our alerts are there."""
    import yaml

    try:
        parsed = yaml.safe_load(content)
        rules: list[dict[str, Any]] = [rule for group in parsed["groups"] for rule in group["rules"]]
        expressions = {str(rule.get("alert") or rule["record"]): str(rule["expr"]) for rule in rules}
        without = [name for rule in rules if (name := rule.get("alert")) and not (rule.get("labels") or {}).get("severity")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [f"is no YAML: {' '.join(str(error).split())[:200]}"], 0
    except (TypeError, KeyError, AttributeError) as error:
        return [f"is no file of Prometheus' rules ({type(error).__name__}: {error})"], 0
    problems = []
    missing = [alert.name for alert in ALERTS if not expressions.get(alert.name, "").strip()]
    if missing:
        problems.append(f"missing: {', '.join(missing)}; {EXPORT}")
    known = {one.exposed + end for one in DEFINITIONS.values() for end in (ENDS if one.kind == "histogram" else ("",))}
    known |= {name for name in expressions if ":" in name} | {record.name for record in RECORDS if record.name in expressions}
    unknown = sorted({name for expression in expressions.values() for name in METRIC.findall(expression)} - known)
    if unknown:
        problems.append(f"no such metric or record: {', '.join(unknown)}; export the rules again, with this version")
    if without:
        problems.append(f"without a severity: {', '.join(without)}")
    return problems, len(ALERTS) - len(missing)


def _promtool(path: Path) -> str | None:
    """What Prometheus' own tool complains of, in one line; empty where it accepts the rules, None where it is not installed or does not answer."""
    tool = shutil.which("promtool")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "check", "rules", str(path)], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return " ".join((done.stderr or done.stdout).split())[:300] if done.returncode else ""
