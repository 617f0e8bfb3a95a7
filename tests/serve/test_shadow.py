"""Shadow checking: what is sampled, what it may cost, and that damage to the served weights shows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from octavo.cli import main
from octavo.engine.ended import Ended
from octavo.engine.request import Finish
from octavo.errors import CapacityError, UsageError
from octavo.loading import LoadedModel, load
from octavo.quality.online import Online
from octavo.serve.drift import Drift
from octavo.serve.quality import Quality
from octavo.serve.shadow import CONTEXT, SAVED, SCORED, Allowance, Interrupted, Shadow, piece_of

from .conftest import Running, Serving


def nothing() -> None:
    return


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.02)


async def requests(server: Running, count: int, seed: int) -> None:
    """Completions of different beginnings, sampled as users' are; some have no answer or fail, which are not checked."""
    for index in range(count):
        who = ("cat", "dog", "boy", "girl", "bird")[index % 5]
        body = {"model": "parrot", "prompt": f"Once upon a time there was a {who}", "max_tokens": 8, "seed": seed + index}
        assert (await server.client.post("/v1/completions", json=body)).status_code == 200


async def test_planted_drift_shows_within_200_requests(tiny_model: Path, tmp_path: Path, serving: Serving) -> None:
    loaded = load(tiny_model, quantization="W4g32A16", use_cache=False)
    online = Online(loaded, str(tiny_model), True, cache_dir=tmp_path)
    shadow = Shadow(0.2, budget=1.0)
    quality = Quality("before", shadow=shadow)
    quality.before(lambda: online, nothing, "m")
    assert quality.receipt is not None and quality.receipt.kl > 0
    async with serving(model=loaded) as server:
        server.service.quality = quality
        assert (await server.client.get("/v1/quality")).json()["shadow"]["state"] == "waiting"
        stopping = threading.Event()

        def check() -> None:
            if stopping.is_set():
                raise Interrupted

        quality.watch(lambda: online.open_original(threads=1, keep=True), loaded, server.engine, check)
        await until(lambda: shadow.state == "checking")
        await requests(server, 30, seed=0)
        await until(lambda: quality.drift.requests.total >= 5)
        sound = quality.drift.ratio(quality.receipt.kl)
        assert sound is not None and sound < 3, "the receipt's level holds on live requests"
        _damage(loaded)
        drift: list[float] = []
        for block in range(20):
            await requests(server, 10, seed=1000 + 10 * block)
            drift.append(quality.drift.ratio(quality.receipt.kl) or 0.0)
            if drift[-1] > 3:
                break
        assert drift[-1] > 3, f"200 requests on damaged weights, and the drift is {drift}"
        metrics = (await server.client.get("/metrics")).text
        shown = float(next(line.split()[1] for line in metrics.splitlines() if line.startswith("octavo_quality_drift_ratio ")))
        assert shown > 3 and 'octavo_shadow_requests_total{outcome="scored"}' in metrics and "octavo_shadow_cpu_seconds_total" in metrics
        found = (await server.client.get("/v1/quality")).json()["shadow"]
        assert found["state"] == "checking" and found["kl"][0] > 3 * quality.receipt.kl
        stopping.set()
        await asyncio.to_thread(quality.join, 20)
        assert shadow.state == "stopped"
    assert load(tiny_model, cache_dir=tmp_path, max_model_len=512).report.cache_hit, "the original lies in the cache, to be mapped"


def _damage(loaded: LoadedModel) -> None:
    """Overwrite one matrix of the first layer, as damaged memory would."""
    packed = loaded.bound.weights["model.layers.0.mlp.down_proj.weight"].packed  # type: ignore[attr-defined]
    assert packed.blob.flags.writeable
    codes = packed.blob.reshape(packed.meta.panels, packed.meta.panel_bytes)[:, packed.meta.values_offset :]
    codes[...] = np.random.default_rng(0).integers(0, 256, codes.shape)


def ended(tokens: int, prompt: int = 4, finish: Finish = Finish.STOP) -> Any:
    return SimpleNamespace(ended=[Ended(0, finish, 0, 1, 2, 3, prompt, 0, list(range(tokens)))])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 1.0])
def test_the_share_is_kept(share: float) -> None:
    shadow = Shadow(share)
    shadow.state = "checking"
    for _ in range(1000):
        shadow.offer([ended(9), ended(4), ended(9, finish=Finish.CANCELLED)])  # the second has no answer, the third no end
    sampled = len(shadow._ready) + shadow._drift.requests.values.get("dropped", 0)
    assert abs(sampled - 1000 * share) <= 1 and len(shadow._ready) <= 4


def test_pieces() -> None:
    short = piece_of(list(range(10)), 4)
    assert short.tokens.tolist() == list(range(10)) and short.scored == 6
    long = piece_of(list(range(300)), 100, [7])
    assert len(long.tokens) == CONTEXT and long.tokens[0] == 7 and long.tokens[-1] == 299 and long.scored == SCORED
    assert piece_of(list(range(5)), 1).scored == 4 and piece_of([3, 4], 0).scored == 1


def test_it_stays_within_its_budget() -> None:
    """While requests run, processor time is bounded by the share, whatever a piece of work takes; idle time is free."""
    engine: Any = SimpleNamespace(idle=False)
    allowance, drift = Allowance(0.02, engine), Drift()
    began, work = time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        allowance.wait(nothing)
        with allowance.spending(drift):
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                work += 1
    passed = time.monotonic() - began
    assert 0 < drift.seconds.total <= allowance._rate * passed + 0.012 and allowance._credit <= SAVED
    engine.idle = True
    spent = drift.seconds.total
    for _ in range(20):
        allowance.wait(nothing)
        with allowance.spending(drift):
            end = time.thread_time() + 0.01
            while time.thread_time() < end:
                work += 1
    assert drift.seconds.total - spent >= 0.2, "nobody had to wait"


def test_what_cannot_be_checked(tiny_model: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    for share in (-1, 1.5):
        with pytest.raises(UsageError):
            Shadow(share)
    assert main(["serve", str(tiny_model), "--shadow-share", "0.1"]) == 2
    assert "--against" in (told := capsys.readouterr().err) and told.count("\n") == 1

    def too_large() -> LoadedModel:
        raise CapacityError("the original takes 9 MB", where="memory")

    shadow = Shadow(1.0)
    served: Any = SimpleNamespace(text=None, twin=lambda _: None)
    shadow.start(Drift(), too_large, served, served, nothing)
    shadow.join(10)
    assert shadow.state.startswith("not possible") and "the original takes" in caplog.text
    shadow.offer([ended(9)])
    assert not shadow._ready
