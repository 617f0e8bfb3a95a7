"""POST /v1/completions: one or several prompts, as text or tokens, each continued n times."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from ..engine.request import Delta, Finish, Request, TokenLogprob
from ..engine.ticket import Ticket
from .answers import deltas, failure, finish_reason, submit, unless_gone
from .events import MARK, Template, event, stream
from .identity import describe
from .logprobs import CompletionLogprobs
from .problems import Problem
from .sampling import refuse_unsupported, sampling
from .schemas import CompletionRequest
from .service import Live, Service
from .usage import Usage

log = logging.getLogger(__name__)
router = APIRouter()

DEFAULT_TOKENS = 16  # OpenAI's default of this API


@dataclass
class Prompt:
    tokens: tuple[int, ...]
    text: str   # shown by echo


@router.post("/v1/completions")
async def complete(body: CompletionRequest, http: HttpRequest) -> Response:
    service: Service = http.app.state.service
    live = service.live(body.model)
    service.check_model(body.model)
    refuse_unsupported(body)
    if body.suffix:
        raise Problem(400, "Unsupported parameter: 'suffix'.", param="suffix", code="unsupported_parameter")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Problem(400, "Unsupported parameter: 'best_of' other than n.", param="best_of", code="unsupported_parameter")
    if body.ignored_fields:
        log.debug("ignored fields: %s", ", ".join(body.ignored_fields))
    prompts, tickets = await asyncio.to_thread(_submit, service, live, body)
    describe(model=body.model, stream=bool(body.stream), chat=False)
    answer = Answer(live, body, prompts, tickets)
    if body.stream:
        return await stream(http, answer, tickets)
    return JSONResponse(await unless_gone(http, answer.whole(), tickets))


def _submit(service: Service, live: Live, body: CompletionRequest) -> tuple[list[Prompt], list[Ticket]]:
    prompts = [_prompt(live, given, body.echo) for given in _several(body.prompt)]
    wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    if body.max_tokens is None and service.options.max_tokens is not None:
        wanted = min(wanted, service.options.max_tokens)
    how = sampling(body, service.options, max_tokens=wanted, logprobs=body.logprobs)
    scored = body.echo and body.logprobs is not None
    requests = [Request(prompt=p.tokens, sampling=how, n=body.n or 1, echo_logprobs=scored) for p in prompts]
    return prompts, submit(live, requests, param="prompt")


def _several(prompt: str | list[Any]) -> list[Any]:
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt


def _prompt(live: Live, given: str | list[int], echo: bool) -> Prompt:
    if isinstance(given, str):
        tokens = tuple(live.text.encode(given))
        if not tokens:
            # Nothing to continue: start like any text does.
            first = live.text.bos_id if live.text.bos_id is not None else next(iter(live.loaded.eos_token_ids), None)
            if first is None:
                raise Problem(400, "The prompt is empty and the model has no token that begins a text.", param="prompt", code="invalid_value")
            tokens = (first,)
        return Prompt(tokens, given)
    return Prompt(tuple(given), live.text.decode(given, skip_special=False) if echo else "")


@dataclass
class Choice:
    logprobs: CompletionLogprobs
    text: str = ""
    scores: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    opened: bool = False
    plain: Template | None = None   # of chunks that hold text and nothing else


class Answer:
    """The answer to one request, whole or in chunks. Choice `c` of prompt `p` has the index p * n + c."""

    def __init__(self, live: Live, body: CompletionRequest, prompts: Sequence[Prompt], tickets: Sequence[Ticket]) -> None:
        self._live, self._body, self._prompts, self._tickets = live, body, prompts, tickets
        self._n = body.n or 1
        self._choices = [Choice(CompletionLogprobs(live.text, body.logprobs or 0)) for _ in range(self._n * len(prompts))]
        self._usage = Usage(sum(len(p.tokens) for p in prompts))
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": body.model,
            "system_fingerprint": live.fingerprint,
        }
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._stream_head = {**self._head, **({"usage": None} if self._with_usage else {})}

    def _read(self, place: int, delta: Delta) -> tuple[int, str, list[tuple[int, TokenLogprob | None]]]:
        """(index of the choice, its text with the echo, tokens with their log probabilities)."""
        if (problem := failure(delta)) is not None:
            raise problem
        self._usage.count(delta)
        index = place * self._n + delta.choice
        choice, prompt = self._choices[index], self._prompts[place]
        text, scored = delta.text, list[tuple[int, TokenLogprob | None]]()
        if self._body.echo and not choice.opened:
            text = prompt.text + text
            scored += list(zip(prompt.tokens, delta.prompt_logprobs, strict=False))
        choice.opened = True
        ended = delta.finish is Finish.STOP and delta.stop_reason is None
        scored += [(item.token, item) for item in delta.logprobs if not (ended and item.token in self._live.end_ids)]
        return index, text, scored

    async def whole(self) -> dict[str, Any]:
        gathered: list[list[tuple[int, TokenLogprob | None]]] = [[] for _ in self._choices]
        async for place, delta in deltas(self._tickets):
            index, text, scored = self._read(place, delta)
            self._choices[index].text += text
            gathered[index] += scored
            self._choices[index].finish = finish_reason(delta)
        choices = [
            {"index": i, "text": c.text, "logprobs": c.logprobs.of(gathered[i]) if self._body.logprobs is not None else None, "finish_reason": c.finish}
            for i, c in enumerate(self._choices)
        ]
        return {**self._head, "choices": choices, "usage": self._usage.body}

    def encode(self, place: int, delta: Delta) -> bytes:
        """The event of a delta; none for one that brings nothing."""
        choice = self._choices[place * self._n + delta.choice]
        if choice.plain is not None and delta.finish is None:     # nearly all of them
            self._usage.count(delta)
            return choice.plain.fill(delta.text) if delta.text else b""
        index, text, scored = self._read(place, delta)
        if self._body.logprobs is None:
            choice.plain = Template(self._chunk(index, MARK, None, None))
        if not (text or scored or delta.finish is not None):
            return b""
        logprobs = choice.logprobs.of(scored) if self._body.logprobs is not None else None
        return event(self._chunk(index, text, logprobs, finish_reason(delta)))

    def end(self) -> bytes:
        return event({**self._stream_head, "choices": [], "usage": self._usage.body}) if self._with_usage else b""

    def _chunk(self, index: int, text: str, logprobs: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
        return {**self._stream_head, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]}
