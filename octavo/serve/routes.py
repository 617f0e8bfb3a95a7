"""The small endpoints: models, tokens, health, metrics, version."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from .. import __version__
from .problems import Problem
from .schemas import DetokenizeRequest, TokenizeRequest
from .service import Service
from .tools import conversation

router = APIRouter()


def _service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service


def _model(service: Service, name: str) -> dict[str, Any]:
    live = service.live(name)
    return {
        "id": name, "object": "model", "created": service.created, "owned_by": "octavo",
        "max_model_len": live.engine.max_model_len, "quantization": str(live.loaded.plan.default),
        "chat": bool(live.text.config.get("chat_template")),
    }


@router.get("/v1/models")
async def models(http: Request) -> dict[str, Any]:
    service = _service(http)
    return {"object": "list", "data": [_model(service, name) for name in service.names]}


@router.get("/v1/models/{name:path}")
async def model(name: str, http: Request) -> dict[str, Any]:
    service = _service(http)
    service.check_model(name)
    return _model(service, name)


@router.get("/v1/quality")
async def quality(http: Request) -> dict[str, Any]:
    """What the model has lost against its original, as far as that is known."""
    return _service(http).quality.to_json()


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, http: Request) -> dict[str, Any]:
    """{"prompt": ...} or {"messages": [...]} -> token ids."""
    service = _service(http)
    live = service.live(body.model)
    if body.model is not None:
        service.check_model(body.model)

    def encode() -> list[int]:
        if body.messages is None:
            return live.text.encode(body.prompt or "", special=body.add_special_tokens)
        messages = conversation(body.messages, (), native=live.knows_tools)
        return live.text.encode_chat(live.text.chat(messages, add_generation_prompt=body.add_generation_prompt))

    tokens = await asyncio.to_thread(encode)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": live.engine.max_model_len}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, http: Request) -> dict[str, str]:
    service = _service(http)
    live = service.live(body.model)
    if body.model is not None:
        service.check_model(body.model)
    unknown = next((t for t in body.tokens if t >= live.loaded.vocab_size), None)
    if unknown is not None:
        raise Problem(400, f"There is no token {unknown}; the vocabulary has {live.loaded.vocab_size}.", param="tokens", code="invalid_value")
    return {"prompt": await asyncio.to_thread(live.text.decode, body.tokens, False)}


@router.get("/health")
async def health(http: Request) -> JSONResponse:
    """200 when requests are taken, 503 while the server starts or stops."""
    state = _service(http).state
    return JSONResponse({"status": state.value}, 200 if state.value == "ready" else 503)


@router.get("/metrics")
async def metrics(http: Request) -> Response:
    body: bytes = http.app.state.exposition.render()
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/figures")
async def figures(http: Request) -> dict[str, Any]:
    """/metrics as JSON."""
    found: dict[str, Any] = http.app.state.exposition.figures()
    return found


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": __version__}
