"""/metrics and /v1/figures against the table of definitions, both ways."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from octavo.quality.receipt import Receipt
from octavo.serve.quality import Quality
from octavo.telemetry import DEFINITIONS, PREFIX

from .conftest import Running, Serving

PROCESS = ("process_", "python_")  # prometheus-client's own


async def exposed(server: Running) -> Iterable[Metric]:
    return text_string_to_metric_families((await server.client.get("/metrics")).text)


async def test_every_metric_of_the_table_is_exposed_and_no_other(serving: Serving) -> None:
    async with serving() as server:
        quality = server.service.quality = Quality("before")
        interval = {"value": 0.9, "low": 0.8, "high": 1.0}
        quality.receipt = Receipt("measured", loss={"kl": {"mean": 0.01, "low": 0.005, "high": 0.02}, "top1_agreement": interval,
                                                    "perplexity_ratio": interval, "tokens": 9}, text={"name": "t"})
        for _ in range(3):
            quality.drift.scored(np.array([0.02, 0.04]), 2.0, 1.5)
        quality.drift.seconds.add(0.5)
        await server.chat("hello")
        assert (await server.client.post("/v1/chat/completions", json={"model": "none"})).status_code == 400
        await server.client.post("/v1/completions", json={"model": "parrot", "prompt": "a" * 3000})
        families = {f.name.removesuffix("_info"): f for f in await exposed(server) if not f.name.startswith(PROCESS)}
        assert set(families) == {PREFIX + name for name in DEFINITIONS}
        for name, family in families.items():
            definition = DEFINITIONS[name.removeprefix(PREFIX)]
            assert (family.type, family.documentation) == (definition.kind if definition.kind != "info" else "gauge", definition.help)
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(definition.labels), sample
                assert sample.name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count").removesuffix("_created") in (definition.exposed, name)
        assert {s.labels["kind"]: s.value for s in families["octavo_request_errors"].samples if s.value} == {"too_long": 1}
        assert [s.value for s in families["octavo_quality_drift_ratio"].samples] == [3.0]
        assert {s.labels["bound"]: s.value for s in families["octavo_shadow_kl"].samples}["value"] == np.float64(0.03)


async def test_a_request_in_numbers(serving: Serving) -> None:
    async with serving() as server:
        await server.chat("hello")
        await server.chat("hello")
        found = {s.name.removeprefix(PREFIX): s.value for family in await exposed(server) for s in family.samples if not set(s.labels) - {"le"}}
        for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
                     "e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"):
            assert found[f"{name}_count"] == 2, name
        assert found["request_generation_tokens_sum"] == found["generation_tokens_total"] == 12  # five letters and the end, twice
        assert found["prefix_cache_queries_total"] == found["prompt_tokens_total"] == found["request_prompt_tokens_sum"]
        assert 0 < found["prefix_cache_hits_total"] < found["prefix_cache_queries_total"]
        parts = [found[f"request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
        assert abs(sum(parts) - found["e2e_request_latency_seconds_sum"]) < 1e-6


async def test_the_same_as_json(serving: Serving) -> None:
    async with serving() as server:
        await server.chat("hello")
        body = (await server.client.get("/v1/figures")).json()
        metrics = body["metrics"]
        assert metrics["generation_tokens"] == 6 and metrics["requests_finished"]["stop"] == 1 and metrics["pages_used"] == 0
        first = metrics["time_to_first_token_seconds"]
        assert sum(first["counts"]) == 1 and len(first["counts"]) == len(first["bounds"]) + 1
        assert metrics["process_resident_memory_bytes"] > 0 and body["time"] > 0


async def test_figures_are_guarded_like_metrics(serving: Serving) -> None:
    async with serving(api_key="k") as server:
        assert [(await server.client.get(path)).status_code for path in ("/metrics", "/v1/figures")] == [200, 200]
    async with serving(api_key="k", protect_metrics=True) as server:
        assert [(await server.client.get(path)).status_code for path in ("/metrics", "/v1/figures")] == [401, 401]
