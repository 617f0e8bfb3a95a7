"""A Grafana dashboard with a panel for every metric of the table, in rows by group; a new metric has its panel at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..telemetry import DEFINITIONS, Definition
from .alerts import RECORDS
from .queries import metric, quantile, rate

WIDTH, HEIGHT, COLUMNS = 8, 7, 3  # of a panel in Grafana's grid of 24 columns
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "tokens": "short", "nats": "short", "": "short"}
QUANTILES = (0.5, 0.95, 0.99)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = 'instance=~"$instance"'


def dashboard() -> dict[str, Any]:
    """The model of a dashboard, as Grafana's import reads it (schema 39, Grafana 10 and later)."""
    return {
        "uid": "octavo", "title": "Octavo", "tags": ["octavo", "llm"], "schemaVersion": 39, "version": 1, "editable": True, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "timezone": "browser", "panels": list(_panels()),
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
            {"name": "instance", "type": "query", "datasource": SOURCE, "query": f"label_values({metric('ready')}, instance)", "refresh": 2, "multi": True,
             "includeAll": True, "allValue": ".*", "label": "Server", "current": {"text": "All", "value": "$__all"}},
        ]},
    }


def _panels() -> Iterator[dict[str, Any]]:
    groups: dict[str, list[tuple[str, str, str, list[tuple[str, str]], str]]] = {
        "Derived": [(record.name, record.help, record.unit, [(record.expression, "{{instance}}")], "timeseries") for record in RECORDS]}
    for definition in DEFINITIONS.values():
        groups.setdefault(definition.group, []).append(_panel_of(definition))
    number = top = 0
    for group, panels in groups.items():
        number += 1
        yield {"id": number, "type": "row", "title": group, "collapsed": False, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []}
        top += 1
        for place, (title, text, unit, queries, kind) in enumerate(panels):
            number += 1
            yield {
                "id": number, "type": kind, "title": title, "description": text, "datasource": SOURCE,
                "gridPos": {"x": place % COLUMNS * WIDTH, "y": top + place // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT},
                "fieldConfig": {"defaults": {"unit": UNITS.get(unit, unit), "min": 0}, "overrides": []},
                "options": {} if kind == "table" else {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
                "targets": [{"refId": chr(ord("A") + i), "expr": _chosen(query), "legendFormat": legend, "datasource": SOURCE,
                             **({"format": "table", "instant": True} if kind == "table" else {})} for i, (query, legend) in enumerate(queries)],
            }
        top += -(-len(panels) // COLUMNS) * HEIGHT


def _panel_of(one: Definition) -> tuple[str, str, str, list[tuple[str, str]], str]:
    """(title, description, unit, [(query, legend)], kind of panel)."""
    legend = " ".join(["{{instance}}", *(f"{{{{{label}}}}}" for label in one.labels)])
    if one.kind == "histogram":
        return one.name, one.help, one.unit, [(quantile(one.name, q, by=("instance",)), f"{{{{instance}}}} p{q * 100:g}") for q in QUANTILES], "timeseries"
    if one.kind == "counter":
        unit = "percentunit" if one.unit == "seconds" else "cps"
        return f"{one.name}, per second", one.help, unit, [(rate(one.name, by=("instance", *one.labels)), legend)], "timeseries"
    if one.kind == "info":
        return one.name, one.help, one.unit, [(metric(one.name), legend)], "table"
    return one.name, one.help, one.unit, [(metric(one.name), legend)], "timeseries"


def _chosen(query: str) -> str:
    """The same query for the servers chosen in the dashboard: every selector of a metric of ours gets the condition."""
    for name in sorted({one.exposed for one in DEFINITIONS.values()}, key=len, reverse=True):
        for end in ("_bucket", ""):
            query = query.replace(f"{name}{end}{{", f"{name}{end}{{{CHOSEN}, ").replace(f"{name}{end}[", f"{name}{end}{{{CHOSEN}}}[")
        if query == name:
            return f"{name}{{{CHOSEN}}}"
    return query
