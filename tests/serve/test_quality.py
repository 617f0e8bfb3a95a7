"""What the server says of its model's loss: measured in the background, at /v1/quality and in the metrics; refused above a limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from octavo.errors import QualityError
from octavo.loading import load
from octavo.quality.online import Online
from octavo.quality.receipt import Receipt
from octavo.serve.quality import Quality
from octavo.serve.server import Interrupted

from .conftest import Serving


def nothing() -> None:
    return


async def test_measured_in_the_background(tiny_model: Path, tmp_path: Path, serving: Serving) -> None:
    loaded = load(tiny_model, quantization="W4g32A16", cache_dir=tmp_path)

    def online() -> Online:
        return Online(loaded, str(tiny_model), True, cache_dir=tmp_path)

    async with serving(model=loaded) as server:
        first = (await server.client.get("/v1/quality")).json()
        assert first == {"object": "quality", "state": "off", "receipt": None, "summary": "off"}
        quality = server.service.quality = Quality("background")
        assert (await server.client.get("/v1/quality")).json()["state"] == "waiting"
        assert "octavo_quality_known 0.0" in (await server.client.get("/metrics")).text
        quality.start(online, nothing)
        body = {"model": "parrot", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
        during = (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        await asyncio.to_thread(quality.join, 60)
        found = (await server.client.get("/v1/quality")).json()
        assert found["state"] == "done" and found["receipt"]["status"] == "measured" and found["summary"].startswith("KL 0.")
        metrics = (await server.client.get("/metrics")).text
        assert "octavo_quality_known 1.0" in metrics
        kl = found["receipt"]["loss"]["kl"]
        for bound in ("value", "low", "high"):
            assert f'octavo_quality_kl{{bound="{bound}"}} {kl["mean" if bound == "value" else bound]}' in metrics
        assert 'octavo_quality_top1_agreement{bound="value"} 0.' in metrics and 'octavo_quality_perplexity_ratio{bound="value"} ' in metrics
        assert during == (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"], "measuring changes no answer"
    again = Quality("before", max_kl=0.5)
    again.before(online, lambda: pytest.fail("it is known already"), "m")
    assert again.receipt is not None and again.receipt.to_json() == found["receipt"]
    with pytest.raises(QualityError, match=r"more than the 0\.0001"):
        Quality("off", max_kl=0.0001).before(online, nothing, "m")


def test_ends_when_the_server_does(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model, quantization="W4g32A16", cache_dir=tmp_path)

    def stopped() -> None:
        raise Interrupted

    quality = Quality("background")
    quality.start(lambda: Online(loaded, str(tiny_model), True, cache_dir=tmp_path), stopped)
    quality.join(20)
    assert quality.receipt is None and not list((tmp_path / "models").glob("*/octavo-receipt*"))


def test_a_failure_leaves_the_server_alone(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Online:
        raise RuntimeError("no")

    quality = Quality("background")
    quality.start(broken, nothing)
    quality.join(20)
    assert quality.state == "failed" and quality.to_json()["receipt"] is None and "could not be made" in caplog.text


async def test_what_was_not_measured(serving: Serving) -> None:
    async with serving() as server:
        server.service.quality = quality = Quality("before")
        quality.receipt, quality.state = Receipt("not measured", "memory: the original takes 9 MB"), "done"
        found = (await server.client.get("/v1/quality")).json()
        assert found["summary"] == "not measured: memory: the original takes 9 MB"
        metrics = (await server.client.get("/metrics")).text
        assert "octavo_quality_known 0.0" in metrics and "octavo_quality_kl" not in metrics
