"""How families of models write tool calls, told from their chat template, and the grammar that makes a model write one.

| family  | a call looks like                                              | told by                        |
|---------|----------------------------------------------------------------|--------------------------------|
| hermes  | <tool_call>{"name": ..., "arguments": {...}}</tool_call>       | the default; Qwen, Hermes, SmolLM |
| llama3  | {"name": ..., "parameters": {...}}                             | <|python_tag|>, or "parameters" asked for |
| mistral | [TOOL_CALLS][{"name": ..., "arguments": {...}}]  or  [TOOL_CALLS]name[ARGS]{...} | [TOOL_CALLS] |

Sources: the chat templates of NousResearch/Hermes-2-Pro, Qwen2.5, Llama-3.1 and Mistral-Nemo on Hugging Face.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..schemas import Function, Message


@dataclass(frozen=True)
class Syntax:
    """openings start a call, closings end it, separators stand between calls; `bare`: an object at the start is a call without an opening;
    `name_first`: the name may stand before the object; `short_ids`: the template wants call ids of nine letters and digits. `one` and
    `several` are Lark rules over `call`, the object."""

    name: str
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    separators: str
    bare: bool
    name_first: bool
    arguments: str
    one: str
    several: str
    short_ids: bool = False


HERMES = Syntax(
    "hermes", ("<tool_call>",), ("</tool_call>",), "", False, False, "arguments",
    one='"<tool_call>\\n" call "\\n</tool_call>"',
    several='"<tool_call>\\n" call "\\n</tool_call>" ("\\n<tool_call>\\n" call "\\n</tool_call>")*',
)
LLAMA3 = Syntax("llama3", ("<|python_tag|>",), (), ";,]", True, False, "parameters", one="call", several='call ("; " call)*')
MISTRAL = Syntax(
    "mistral", ("[TOOL_CALLS]",), (), ",;]", True, True, "arguments",
    one='"[" call "]"', several='"[" call (", " call)* "]"',
    short_ids=True,
)
SYNTAXES = (HERMES, LLAMA3, MISTRAL)


def syntax_of(template: str) -> Syntax:
    """The family that a chat template belongs to."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and ("<|python_tag|>" in template or '"parameters": dictionary' in template):
        return LLAMA3
    return HERMES


def forced(syntax: Syntax, functions: Sequence[Function], *, several: bool) -> dict[str, str]:
    """The grammar (engine.Sampling.grammar) of an answer that is nothing but calls of these functions."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": f.name}, syntax.arguments: _arguments(f)},
            "required": ["name", syntax.arguments],
            "additionalProperties": False,
        }
        for f in functions
    ]
    rules = [f"start: {syntax.several if several else syntax.one}", "call: " + " | ".join(f"call_{i}" for i in range(len(calls)))]
    # Fixed white space: a small model could otherwise go on with blanks for ever.
    style = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
    rules += [f"call_{i}: %json {json.dumps({**schema, **style})}" for i, schema in enumerate(calls)]
    return {"lark": "\n".join(rules)}


def _arguments(function: Function) -> dict[str, Any]:
    """The schema of the arguments: an object that, unless the tool says otherwise, has no properties but those it lists."""
    schema = {"type": "object", **(function.parameters or {})}
    if not {"anyOf", "oneOf", "allOf", "$ref", "additionalProperties", "patternProperties"} & set(schema):
        schema["additionalProperties"] = False
    return schema


def conversation(messages: Sequence[Message], functions: Sequence[dict[str, Any]], *, native: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them. `native`: the template knows tools; if not, they are described in the system message, and calls and
    results are written out as text."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        entry: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": message.text, **_more(message)}
        calls = [{"name": c.function.name, "arguments": _decoded(c.function.arguments)} for c in message.tool_calls or ()]
        if native:
            if calls:
                entry["tool_calls"] = [
                    {"id": c.id or "", "type": "function", "function": call} for c, call in zip(message.tool_calls or (), calls, strict=True)
                ]
            if message.tool_call_id is not None:
                entry["tool_call_id"] = message.tool_call_id
        elif calls:
            written = "\n".join(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls)
            entry["content"] = f"{message.text}\n{written}".lstrip("\n")
        elif message.role == "tool":
            entry = {"role": "user", "content": f"<tool_response>\n{message.text}\n</tool_response>"}
        plain.append(entry)
    if functions and not native:
        system = plain[0]["content"] + "\n\n" if plain and plain[0]["role"] == "system" else ""
        plain = [{"role": "system", "content": system + described(functions)}, *(plain[1:] if system else plain)]
    return plain


def _more(message: Message) -> dict[str, Any]:
    """Fields of a message that some templates read."""
    kept = {key: value for key, value in (message.model_extra or {}).items() if key in ("reasoning_content", "thinking", "reasoning", "refusal")}
    return kept | ({"name": message.name} if message.name is not None else {})


def _decoded(arguments: str | dict[str, Any]) -> Any:
    """Clients send arguments as JSON text, templates want the object."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def described(functions: Sequence[dict[str, Any]]) -> str:
    """What a model whose template knows no tools is told about them."""
    signatures = "\n".join(json.dumps(f, ensure_ascii=False) for f in functions)
    return (
        "You can call these functions, each described by a JSON schema:\n"
        f"<tools>\n{signatures}\n</tools>\n"
        "When a function helps to answer, reply with one such block per call and nothing else:\n"
        '<tool_call>\n{"name": "the function\'s name", "arguments": {"parameter": "value"}}\n</tool_call>'
    )
