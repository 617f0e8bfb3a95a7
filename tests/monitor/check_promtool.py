"""Prometheus' own tool on what we make: `make test-promtool` (promtool is part of Debian's package prometheus). Not part of `make test`.

It checks the rules, every query of the dashboard, the text of /metrics, and that every alert fires on the series that it is for and stays silent on a
sound server's.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from serve.conftest import Serving

from octavo.monitor import ALERTS, dashboard, rules

pytest_plugins = ["serve.conftest"]
ONE = 'job="octavo", instance="a"'
FLAT, SLOW = "0+0x180", "0+60x180"  # counters over three hours, a value a minute

# What makes each alert fire: series -> values. What is not named is as on a sound server.
FIRES: dict[str, dict[str, str]] = {
    "OctavoDown": {"up": "0x180"},
    "OctavoNotReady": {"octavo_ready": "0x180"},
    "OctavoSlowFirstToken": {'octavo_time_to_first_token_seconds_bucket{le="0.1"}': FLAT, 'octavo_time_to_first_token_seconds_bucket{le="5.0"}': SLOW},
    "OctavoSlowTokens": {'octavo_inter_token_latency_seconds_bucket{le="0.1"}': FLAT, 'octavo_inter_token_latency_seconds_bucket{le="5.0"}': SLOW},
    "OctavoLongQueue": {'octavo_request_queue_time_seconds_bucket{le="0.1"}': FLAT, 'octavo_request_queue_time_seconds_bucket{le="5.0"}': FLAT},
    "OctavoRefusing": {'octavo_request_errors_total{kind="queue_full"}': SLOW},
    "OctavoErrors": {'octavo_request_errors_total{kind="timeout"}': "0+6x180"},
    "OctavoNaN": {"octavo_nan_failures_total": "0x90 1x90"},
    "OctavoStepsFail": {"octavo_step_failures_total": "0x90 1x90"},
    "OctavoHTTPErrors": {'octavo_http_requests_total{route="/", status="500"}': "0+6x180"},
    "OctavoCacheFull": {"octavo_kv_cache_usage_perc": "0.99x180"},
    "OctavoPreempting": {"octavo_num_preemptions_total": SLOW},
    "OctavoMemoryLow": {"octavo_memory_available_bytes": "1e8x180"},
    "OctavoQualityDrift": {"octavo_quality_drift_ratio": "5x180"},
    "OctavoQualityUnwatched": {'octavo_shadow_requests_total{outcome="dropped"}': SLOW, 'octavo_shadow_requests_total{outcome="scored"}': FLAT},
    "OctavoQualityUnknown": {"octavo_quality_known": "0x180"},
}
SOUND: dict[str, str] = {
    "up": "1x180", "octavo_ready": "1x180", "octavo_nan_failures_total": FLAT, "octavo_step_failures_total": FLAT, "octavo_kv_cache_usage_perc": "0.4x180",
    "octavo_num_preemptions_total": FLAT, "octavo_kv_cache_bytes": "1e9x180", "octavo_pages_free": "50x180", "octavo_pages": "100x180",
    "octavo_memory_available_bytes": "8e9x180", "octavo_quality_drift_ratio": "1.2x180", "octavo_quality_known": "1x180",
    'octavo_request_errors_total{kind="queue_full"}': FLAT, 'octavo_request_errors_total{kind="timeout"}': FLAT,
    'octavo_requests_finished_total{finished_reason="stop"}': SLOW, 'octavo_http_requests_total{route="/", status="200"}': SLOW,
    'octavo_http_requests_total{route="/", status="500"}': FLAT, 'octavo_shadow_requests_total{outcome="dropped"}': FLAT,
    'octavo_shadow_requests_total{outcome="scored"}': SLOW,
    **{f'octavo_{name}_seconds_bucket{{le="{le}"}}': SLOW for name in ("time_to_first_token", "inter_token_latency", "request_queue_time")
       for le in ("0.1", "5.0", "30.0", "+Inf")},
}


def series(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"series": f"{name[:-1]}, {ONE}}}" if name.endswith("}") else f"{name}{{{ONE}}}", "values": text} for name, text in values.items()]


def promtool(*arguments: str, given: bytes | None = None) -> str:
    run = subprocess.run(["promtool", *arguments], input=given, capture_output=True, timeout=120)
    assert run.returncode == 0, (run.stdout + run.stderr).decode()
    return run.stdout.decode()


def test_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(rules())
    assert f"{len(ALERTS) + 4} rules found" in promtool("check", "rules", str(tmp_path / "rules.yml"))


def test_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    (tmp_path / "q.yml").write_text(json.dumps({"groups": [{"name": "q", "rules": [{"record": f"q{i}", "expr": q} for i, q in enumerate(queries)]}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(tmp_path / "q.yml"))


@pytest.mark.parametrize("name", [alert.name for alert in ALERTS])
def test_alert_fires(name: str, tmp_path: Path) -> None:
    promtool("test", "rules", str(_unit_test(tmp_path, {**SOUND, **FIRES[name]}, fires=name)))


def test_no_alert_on_a_sound_server(tmp_path: Path) -> None:
    promtool("test", "rules", str(_unit_test(tmp_path, SOUND)))


def _unit_test(folder: Path, values: dict[str, str], fires: str = "") -> Path:
    """A unit test file: at 100 minutes the alert `fires` is firing ("": none is)."""
    (folder / "rules.yml").write_text(rules())
    expected: dict[str, Any] = {"eval_time": "100m", "expr": f'count(ALERTS{{alertstate="firing"{f", alertname={json.dumps(fires)}" if fires else ""}}})'}
    expected["exp_samples"] = [{"labels": "{}", "value": 1}] if fires else []
    test = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [{"interval": "1m", "input_series": series(values),
                                                                                 "promql_expr_test": [expected]}]}
    (folder / "test.yml").write_text(json.dumps(test))
    return folder / "test.yml"


async def test_metrics_lint(serving: Serving) -> None:
    """promtool's opinion on names, units and help: it has none."""
    async with serving() as server:
        await server.chat("hello")
        text = (await server.client.get("/metrics")).content
    assert not promtool("check", "metrics", given=text)
