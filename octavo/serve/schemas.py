"""The requests that clients send, as pydantic models with bounded sizes. Names and ranges are those of OpenAI's reference; marked fields are ours.

Fields that are not listed are accepted and ignored, as clients send many that change nothing here; `ignored_fields` names them for the log.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

MAX_SCHEMA = 64 << 10  # characters of a JSON schema
MAX_NESTING = 64

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=512)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    @property
    def ignored_fields(self) -> list[str]:
        return sorted(self.model_extra or {})


class Request(Body):
    """The outermost object of a body."""

    @model_validator(mode="before")
    @classmethod
    def only_characters(cls, data: Any) -> Any:
        """JSON can spell half of a surrogate pair, which is no character: no tokenizer takes it and no answer could repeat it."""
        if isinstance(data, dict):
            try:
                json.dumps(data, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                raise ValueError("a string holds half of a surrogate pair") from None
            except RecursionError:
                raise ValueError("it is nested too deep") from None
        return data


def check_schema(schema: Any) -> Any:
    """A JSON schema of bearable size and depth."""
    if len(json.dumps(schema)) > MAX_SCHEMA:
        raise ValueError(f"the JSON schema is longer than {MAX_SCHEMA} characters")
    level: list[Any] = [schema]
    for _ in range(MAX_NESTING):
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())]
        if not level:
            return schema
    raise ValueError(f"the JSON schema is nested more than {MAX_NESTING} levels deep")


class Part(Body):
    type: str
    text: str | None = None

    @model_validator(mode="after")
    def only_text(self) -> Part:
        if self.type not in ("text", "input_text") or self.text is None:
            raise ValueError(f"content of type {self.type!r} is not supported by this model, only text")
        return self


class CalledFunction(Body):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(max_length=4096)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="after")
    def has_content(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError(f"a message of role {self.role!r} needs content")
        return self

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content or ())


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    _bounded = field_validator("parameters")(check_schema)


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Body):
    name: str = "schema"
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")
    strict: bool | None = None

    _bounded = field_validator("schema_")(check_schema)


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing")
        return self

    @property
    def grammar(self) -> dict[str, Any] | None:
        """For engine.Sampling; None for text."""
        if self.type == "text":
            return None
        return {"json_object": True} if self.json_schema is None else {"json_schema": self.json_schema.schema_}


class StreamOptions(Body):
    include_usage: bool = False


class Generation(Request):
    """What both completions APIs share."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 64)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    logit_bias: dict[str, Bias] | None = Field(None, max_length=1024)
    max_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    # Ours, with the names that other servers of open models use.
    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    min_tokens: int | None = Field(None, ge=0, lt=1 << 31)
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    include_stop_str_in_output: bool = False
    response_format: ResponseFormat | None = None

    @field_validator("logit_bias")
    @classmethod
    def keys_are_tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for key in value or ():
            if not (key.isascii() and key.isdigit() and len(key) < 10):
                raise ValueError(f"keys are token ids, not {key!r}")
        return value

    @model_validator(mode="after")
    def streams(self) -> Generation:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, Any] | None = None  # ours

    @model_validator(mode="after")
    def logprobs_go_together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self


class CompletionRequest(Generation):
    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(None, ge=1, le=128)
    suffix: str | None = None


class TokenizeRequest(Request):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True

    @model_validator(mode="after")
    def one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        return self


class DetokenizeRequest(Request):
    model: str | None = None
    tokens: list[TokenId]
