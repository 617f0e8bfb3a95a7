"""Traces: OpenTelemetry spans of each request, sent by the SDK where an endpoint is configured; opentelemetry is imported only then.

    POST /v1/chat/completions            kind server; its parent comes with the header traceparent (W3C Trace Context)
      queue | prefill | decode           of each choice, from the times that the engine noted

Attributes follow OpenTelemetry's conventions for HTTP and generative AI. Everything else (service name, sampling, headers, batching) the SDK reads from its
own OTEL_* variables. Spans are made when the response has ended, so no token waits for one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .identity import Identity


class Tracing:
    """`provider`: a TracerProvider of the SDK."""

    def __init__(self, provider: Any, model: str) -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        from .. import __version__

        self._provider, self._model = provider, model
        self._tracer = provider.get_tracer("octavo", __version__)
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, identity: Identity, headers: Mapping[str, str], method: str) -> Any:
        """The span of a request; its trace's id becomes known to the identity."""
        parent = self._propagator.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        span = self._tracer.start_span(method, context=parent, kind=self._server, attributes={"http.request.method": method, "octavo.request.id": identity.id})
        identity.trace = format(span.get_span_context().trace_id, "032x")
        return span

    def end(self, span: Any, identity: Identity, method: str, route: str, status: int) -> None:
        """End it, with a span for each phase of each choice."""
        if span.is_recording():
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": status, **self._facts(identity)})
            if status >= 500:
                span.set_status(self._error)
            self._phases(span, identity)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def _facts(self, identity: Identity) -> dict[str, Any]:
        numbers = identity.numbers()
        if not numbers:
            return {}
        return {
            "gen_ai.operation.name": "chat" if identity.facts.get("chat") else "text_completion", "gen_ai.provider.name": "octavo",
            "gen_ai.request.model": self._model, "gen_ai.usage.input_tokens": numbers["prompt_tokens"],
            "gen_ai.usage.output_tokens": numbers["generated_tokens"], "gen_ai.usage.cache_read.input_tokens": numbers["cached_tokens"],
            "gen_ai.response.finish_reasons": numbers["finished"], "gen_ai.response.time_to_first_chunk": numbers.get("first_token_seconds", -1.0),
        }

    def _phases(self, span: Any, identity: Identity) -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(span)
        offset = time.time() - time.monotonic()
        for ticket in identity.tickets:
            for one in ticket.ended:
                times = [one.submitted, one.admitted or one.ended, one.first_token or one.ended, one.ended]
                names = ["queue", "prefill", "decode"][: 1 + bool(one.admitted) + bool(one.first_token)]
                for name, began, ended in zip(names, times, times[1:], strict=False):
                    phase = self._tracer.start_span(name, context=context, start_time=int((began + offset) * 1e9), attributes={"octavo.choice": one.choice})
                    phase.end(end_time=int((ended + offset) * 1e9))


def tracing_to(endpoint: str, model: str) -> Tracing:
    """Traces sent to an OTLP collector over HTTP, at `endpoint`/v1/traces. UsageError where the packages are missing or the address is none."""
    if not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"{endpoint!r} is no address of a collector", where="--otlp-endpoint", remedy="such as http://localhost:4318")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UsageError(f"traces need {error.name}, which is not installed", where="--otlp-endpoint", remedy="pip install 'octavo[otel]'") from None
    resource = Resource.create({SERVICE_NAME: "octavo"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    return Tracing(provider, model)
