"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from ..engine.request import Delta, Finish, Request
from ..engine.ticket import Ticket
from ..errors import RequestError
from .answers import deltas, failure, finish_reason, submit, unless_gone
from .events import MARK, Template, event, stream
from .identity import describe
from .logprobs import chat_logprobs
from .problems import Problem, of_error
from .sampling import refuse_unsupported, sampling
from .schemas import ChatRequest, NamedTool, Tool
from .service import Live, Service
from .tools import CallArguments, CallStart, Content, Event, Reader, conversation, forced
from .usage import Usage

log = logging.getLogger(__name__)
router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, http: HttpRequest) -> Response:
    service: Service = http.app.state.service
    live = service.live(body.model)
    service.check_model(body.model)
    refuse_unsupported(body)
    if body.ignored_fields:
        log.debug("ignored fields: %s", ", ".join(body.ignored_fields))
    ticket, readers = await asyncio.to_thread(_submit, service, live, body)
    describe(model=body.model, stream=bool(body.stream), chat=True)
    answer = Answer(live, body, service.options.names, ticket, readers)
    if body.stream:
        return await stream(http, answer, [ticket])
    return JSONResponse(await unless_gone(http, answer.whole(), [ticket]))


def _submit(service: Service, live: Live, body: ChatRequest) -> tuple[Ticket, list[Reader] | None]:
    """Tokens of the conversation, the grammar if a call is forced, and a reader per choice if calls are possible."""
    tools, must = chosen_tools(body)
    functions = [tool.model_dump(exclude_none=True)["function"] for tool in tools]
    try:
        rendered = live.text.chat(
            conversation(body.messages, functions, native=live.knows_tools),
            tools=[{"type": "function", "function": f} for f in functions] if functions and live.knows_tools else None,
            **_template_variables(body),
        )
    except RequestError as error:
        raise of_error(error, "messages") from None
    several = body.parallel_tool_calls and not isinstance(body.tool_choice, NamedTool)
    grammar = forced(live.syntax, [t.function for t in tools], several=several) if must else None
    wanted, field_name = body.max_tokens, "max_tokens"
    if body.max_completion_tokens is not None:
        wanted, field_name = body.max_completion_tokens, "max_completion_tokens"
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    request = Request(
        prompt=tuple(live.text.encode_chat(rendered)), n=body.n or 1,
        sampling=sampling(body, service.options, max_tokens=wanted, max_field=field_name, logprobs=logprobs, grammar=grammar),
    )
    [ticket] = submit(live, [request], param="messages", grammar_param="tools" if must else "response_format")
    names = frozenset(tool.function.name for tool in tools)
    return ticket, [Reader(live.syntax, names) for _ in range(request.n)] if tools else None


def chosen_tools(body: ChatRequest) -> tuple[list[Tool], bool]:
    """The tools that the model is told of, and whether it must call one. Raises Problem 400."""
    tools, choice = body.tools or [], body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise Problem(400, "tool_choice needs tools.", param="tool_choice", code="invalid_value")
        return [], False
    if choice == "none":
        return [], False
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            raise Problem(400, f"tool_choice names {choice.function.name!r}, which is not among the tools.", param="tool_choice", code="invalid_value")
        return tools, True
    return tools, choice == "required"


def _template_variables(body: ChatRequest) -> dict[str, Any]:
    own = {"messages", "tools", "documents", "add_generation_prompt"}
    return {key: value for key, value in (body.chat_template_kwargs or {}).items() if key not in own}


@dataclass
class Choice:
    """What was gathered of one choice."""

    reader: Reader | None
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    opened: bool = False
    plain: Template | None = None   # of chunks that hold text and nothing else

    def read(self, delta: Delta) -> list[Event]:
        """The events of a delta: text, or pieces of calls."""
        if self.reader is None:
            return [Content(delta.text)] if delta.text else []
        events = self.reader.push(delta.text)
        return events + self.reader.finish() if delta.finish is not None else events

    def keep(self, event: Event) -> None:
        if isinstance(event, Content):
            self.content += event.text
        elif isinstance(event, CallStart):
            self.calls.append({"id": event.id, "type": "function", "function": {"name": event.name, "arguments": ""}})
        else:
            self.calls[event.index]["function"]["arguments"] += event.text


class Answer:
    """The answer to one request, whole or in chunks."""

    def __init__(self, live: Live, body: ChatRequest, names: Sequence[str], ticket: Ticket, readers: list[Reader] | None) -> None:
        self._live, self._body, self._ticket = live, body, ticket
        self._choices = [Choice(readers[i] if readers else None) for i in range(ticket.request.n)]
        self._usage = Usage(len(ticket.request.prompt))
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "object": "chat.completion", "created": int(time.time()), "model": body.model,
            "system_fingerprint": live.fingerprint,
        }
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._stream_head = {**self._head, "object": "chat.completion.chunk", **({"usage": None} if self._with_usage else {})}

    def _read(self, delta: Delta) -> tuple[Choice, list[Event]]:
        if (problem := failure(delta)) is not None:
            raise problem
        self._usage.count(delta)
        choice = self._choices[delta.choice]
        if self._body.logprobs:
            ended = delta.finish is Finish.STOP and delta.stop_reason is None
            shown = delta.logprobs[:-1] if ended and delta.logprobs and delta.logprobs[-1].token in self._live.end_ids else delta.logprobs
            choice.logprobs += chat_logprobs(self._live.text, shown)
        return choice, choice.read(delta)

    async def whole(self) -> dict[str, Any]:
        async for _, delta in deltas([self._ticket]):
            choice, events = self._read(delta)
            for part in events:
                choice.keep(part)
            choice.finish = finish_reason(delta, called=bool(choice.calls))
        return {**self._head, "choices": [self._choice(i, c) for i, c in enumerate(self._choices)], "usage": self._usage.body}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content if choice.content or not choice.calls else None, "refusal": None}
        if choice.calls:
            message["tool_calls"] = choice.calls
        logprobs = {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    def encode(self, place: int, delta: Delta) -> bytes:
        """The events of a delta."""
        choice = self._choices[delta.choice]
        if choice.plain is not None and delta.finish is None:     # nearly all of them
            self._usage.count(delta)
            return choice.plain.fill(delta.text) if delta.text else b""
        return b"".join([event(chunk) for chunk in self._chunks(delta)])

    def end(self) -> bytes:
        return event({**self._stream_head, "choices": [], "usage": self._usage.body}) if self._with_usage else b""

    def _chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        choice, events = self._read(delta)
        index = delta.choice
        if not choice.opened:
            choice.opened = True
            held, choice.logprobs = choice.logprobs, []
            yield self._chunk(choice, index, {"role": "assistant", "content": "", "refusal": None})
            choice.logprobs = held
            if choice.reader is None and not self._body.logprobs:
                choice.plain = Template(self._chunk(choice, index, {"content": MARK}))
        for part in events:
            yield self._chunk(choice, index, _delta(part))
        if delta.finish is not None:
            called = choice.reader is not None and choice.reader.calls > 0
            yield self._chunk(choice, index, {}, finish_reason(delta, called=called))
        elif choice.logprobs and choice.reader is None:
            yield self._chunk(choice, index, {"content": ""})

    def _chunk(self, choice: Choice, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        logprobs = {"content": choice.logprobs, "refusal": None} if self._body.logprobs and choice.logprobs else None
        choice.logprobs = []
        return {**self._stream_head, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}


def _delta(part: Event) -> dict[str, Any]:
    if isinstance(part, Content):
        return {"content": part.text}
    if isinstance(part, CallStart):
        return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}]}
    assert isinstance(part, CallArguments)
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
