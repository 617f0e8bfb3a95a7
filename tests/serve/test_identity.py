"""Which request a header, a log line and a trace belong to. Traces go through the SDK's own exporter to a collector that understands OTLP."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from octavo.errors import UsageError
from octavo.serve.logs import ACCESS, JsonFormatter, TextFormatter
from octavo.serve.tracing import tracing_to

from .conftest import Serving


async def test_the_id_of_a_request(serving: Serving) -> None:
    async with serving(api_key="k") as server:
        key = {"Authorization": "Bearer k"}
        given = await server.client.get("/v1/models", headers={**key, "X-Request-Id": "abc-1"})
        assert given.headers["x-request-id"] == "abc-1"
        assert (await server.client.get("/v1/models", headers={"X-Request-Id": "abc-2"})).headers["x-request-id"] == "abc-2", "of a refusal too"
        own = {(await server.client.get(path, headers=key)).headers["x-request-id"] for path in ("/v1/models", "/v1/models", "/none")}
        assert len(own) == 3 and all(one.startswith("req-") for one in own)
        for wrong in ("x" * 129, "a b", "tab\there", "quote\x7f"):
            assert (await server.client.get("/health", headers={"X-Request-Id": wrong})).headers["x-request-id"].startswith("req-")
        body = {"model": "parrot", "messages": [{"role": "user", "content": "«hi»"}], "stream": True}
        streamed = await server.client.post("/v1/chat/completions", json=body, headers={**key, "X-Request-Id": "abc-3"})
        assert streamed.headers["x-request-id"] == "abc-3" and "[DONE]" in streamed.text


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What octavo logs as JSON; filled when the list is read by `read`."""
    stream, found = io.StringIO(), list[dict[str, Any]]()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root, before = logging.getLogger("octavo"), (logging.getLogger("octavo").level, ACCESS.level)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    ACCESS.setLevel(logging.INFO)
    handler.flush = lambda: found.__setitem__(slice(None), [json.loads(line) for line in stream.getvalue().splitlines()])  # type: ignore[method-assign]
    yield found
    root.removeHandler(handler)
    root.setLevel(before[0])
    ACCESS.setLevel(before[1])


async def test_a_line_for_each_request(serving: Serving, lines: list[dict[str, Any]]) -> None:
    async with serving() as server:
        await server.client.post("/v1/completions", json={"model": "parrot", "prompt": ["«secret»", "«words»"], "max_tokens": 9}, headers={"X-Request-Id": "a"})
        await server.client.post("/v1/chat/completions", content=b"{", headers={"X-Request-Id": "b", "Content-Type": "application/json"})
        await server.client.get("/health")
    first, second, third = [line for line in lines if line["logger"] == "octavo.requests"]
    assert (first["request_id"], first["route"], first["status"], first["method"], first["model"]) == ("a", "/v1/completions", 200, "POST", "parrot")
    assert first["generated_tokens"] == 13 and first["finished"] == ["stop"] and first["stream"] is False  # 6 + 5 letters and two ends
    assert 0 <= first["queue_seconds"] <= first["first_token_seconds"] <= first["seconds"]
    assert (second["request_id"], second["status"]) == ("b", 400) and "generated_tokens" not in second
    assert third["route"] == "/health" and third["time"].endswith("Z") and third["level"] == "info"
    assert "secret" not in json.dumps(lines), "what users write is not logged"


async def test_other_lines_name_their_request(serving: Serving, lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        monkeypatch.setattr(server.service, "check_model", lambda _: 1 / 0)
        answer = await server.client.post("/v1/completions", json={"model": "parrot", "prompt": "x"}, headers={"X-Request-Id": "c"})
        assert answer.status_code == 500 and answer.headers["x-request-id"] == "c"
    failed = next(line for line in lines if line["level"] == "error")
    assert failed["request_id"] == "c" and "ZeroDivisionError" in failed["error"]
    record = logging.LogRecord("octavo", logging.INFO, "", 0, "ready", (), None)
    assert TextFormatter().format(record).endswith("INFO octavo: ready [c]")
    assert contextvars.Context().run(TextFormatter().format, record).endswith("INFO octavo: ready"), "outside of a request"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector's address, and the spans that it got."""
    spans: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in request.resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                spans.extend((names["service.name"], span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    server.server_close()


async def test_a_trace_of_each_request(serving: Serving, collector: tuple[str, list[Any]], lines: list[dict[str, Any]]) -> None:
    url, got = collector
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with serving() as server:
        server.service.tracing = tracing_to(url, "parrot")
        body = {"model": "parrot", "messages": [{"role": "user", "content": "«hello»"}]}
        await server.client.post("/v1/chat/completions", json=body, headers={"traceparent": f"00-{trace}-{parent}-01", "X-Request-Id": "t"})
        await server.client.get("/v1/models/none")
        server.service.tracing.close()
    assert {service for service, _ in got} == {"octavo"}
    spans = {span.name: span for _, span in got}
    assert set(spans) == {"POST /v1/chat/completions", "queue", "prefill", "decode", "GET /v1/models/{name:path}"}
    root = spans["POST /v1/chat/completions"]
    assert root.trace_id.hex() == trace and root.parent_span_id.hex() == parent
    facts = {a.key: a.value for a in root.attributes}
    assert facts["http.response.status_code"].int_value == 200 and facts["gen_ai.usage.output_tokens"].int_value == 6
    assert facts["gen_ai.request.model"].string_value == "parrot" and facts["octavo.request.id"].string_value == "t"
    ends = [root.start_time_unix_nano]
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent_span_id == root.span_id and spans[name].trace_id == root.trace_id
        assert ends[-1] - 2_000_000 <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
        ends.append(spans[name].end_time_unix_nano)
    assert ends[-1] <= root.end_time_unix_nano + 2_000_000
    other = spans["GET /v1/models/{name:path}"]
    assert other.trace_id.hex() != trace and not other.parent_span_id
    assert [line["trace_id"] for line in lines if line["logger"] == "octavo.requests"] == [trace, other.trace_id.hex()]


def test_no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no address"):
        tracing_to("localhost:4318", "m")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match=r"pip install 'octavo\[otel\]'"):
        tracing_to("http://localhost:4318", "m")
