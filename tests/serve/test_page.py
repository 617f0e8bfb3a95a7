"""The page without a browser: what is served and to whom. `make test-browser` (tests/browser) uses it as people do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octavo.cli import main
from octavo.engine import Engine, EngineOptions
from octavo.serve.site import FILES, FOLDER

from .conftest import Parrot, Serving


async def test_what_is_served(serving: Serving) -> None:
    async with serving(api_key="k") as server:
        for path, (name, kind) in FILES.items():
            answer = await server.client.get(path)
            assert answer.status_code == 200 and answer.content == (FOLDER / name).read_bytes() and answer.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in answer.headers["content-security-policy"], "the page is open, what it shows is not"
        assert (await server.client.get("/v1/models")).status_code == 401
    async with serving(page=False) as server:
        assert [(await server.client.get(path)).status_code for path in FILES] == [404, 404, 404]


def test_nothing_comes_from_elsewhere() -> None:
    html, style, script = ((FOLDER / name).read_text() for name, _ in FILES.values())
    loaded = re.findall(r'(?:src|href)="([^"#]*)"', html)
    assert set(loaded) == {"data:,", "page/style.css", "page/script.js", "metrics"} and "url(" not in style and "@import" not in style
    assert not re.search(r"innerHTML|outerHTML|document\.write|eval\(", script), "what models write is text, never markup"
    assert set(re.findall(r'\$\("([a-z-]+)"\)', script)) <= set(re.findall(r'id="([a-z-]+)"', html))
    assert not re.search(r"\son[a-z]+=|style=", html), "the page's own policy would forbid it"


async def test_a_second_precision_answers_to_its_own_name(serving: Serving) -> None:
    async with serving() as server:
        other = Parrot(template=None)
        with Engine(other, EngineOptions(kv_pages=64, max_batch=2)) as second:  # type: ignore[arg-type]
            server.service.open_second("parrot:16bit", other, second)  # type: ignore[arg-type]
            listed = (await server.client.get("/v1/models")).json()["data"]
            assert [(one["id"], one["chat"]) for one in listed] == [("parrot", True), ("parrot:16bit", False)]
            body = {"model": "parrot:16bit", "prompt": "«two»", "max_tokens": 9}
            assert (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"] == "two"
            assert (second.telemetry.requests.total, server.engine.telemetry.requests.total) == (1, 0)
            assert (await server.client.post("/v1/completions", json={**body, "model": "parrot:8bit"})).status_code == 404


def test_a_second_precision_that_is_none(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tiny_model), "--compare", "W99"]) == 2
    assert "W99" in (told := capsys.readouterr().err) and told.count("\n") == 1
