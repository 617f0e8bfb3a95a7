"""The rules file of Prometheus. Written by hand as YAML: every value is a string in JSON's quotes, which YAML reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .alerts import ALERTS, RECORDS, Limits


def rules(limits: Limits | None = None) -> str:
    """A rules file: what is precomputed, and the alerts."""
    return "\n".join(_lines(limits or Limits())) + "\n"


def _lines(limits: Limits) -> Iterator[str]:
    yield "# Made by `octavo monitor export`. Thresholds are its options; see docs/monitoring.md."
    yield "groups:"
    yield "  - name: octavo-records"
    yield "    rules:"
    for record in RECORDS:
        yield f"      - record: {record.name}"
        yield f"        expr: {json.dumps(record.expression)}"
    yield "  - name: octavo-alerts"
    yield "    rules:"
    for alert in ALERTS:
        yield f"      - alert: {alert.name}"
        yield f"        expr: {json.dumps(alert.condition(limits))}"
        yield f"        for: {alert.lasts}"
        yield f"        labels: {{severity: {alert.severity}}}"
        yield "        annotations:"
        yield f"          summary: {json.dumps(alert.summary)}"
        yield f"          description: {json.dumps(alert.action)}"
