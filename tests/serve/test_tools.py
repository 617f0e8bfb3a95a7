"""Tool calls: the reader against every way to cut a text, forced grammars, streaming, templates of the families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.serve.schemas import Message
from octavo.serve.tools import SYNTAXES, CallArguments, CallStart, Content, Event, Reader, conversation, syntax_of
from octavo.serve.tools.syntax import HERMES, LLAMA3, MISTRAL

from .conftest import TEMPLATE, Parrot, Serving
from .test_chat import events

NAMES = frozenset({"weather", "add"})
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "The weather in a city.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Seoul"]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}},
]


def gather(found: list[Event]) -> tuple[str, list[tuple[str, str]]]:
    """(content, calls) of a list of events; checks that indices count up and that ids differ."""
    content, calls, ids = "", list[tuple[str, str]](), set[str]()
    for event in found:
        if isinstance(event, Content):
            content += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(calls)
            ids.add(event.id)
            calls.append((event.name, ""))
        else:
            assert isinstance(event, CallArguments) and event.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    assert len(ids) == len(calls)
    return content, calls


W = ("weather", '{"city": "Pa}ris \\"{"}')
A = ("add", '{"a": 1, "b": [2, {"c": 3}]}')
CASES: list[tuple[Any, str, str, list[tuple[str, str]]]] = [
    (HERMES, "hello there", "hello there", []),
    (HERMES, f'<tool_call>\n{{"name": "weather", "arguments": {W[1]}}}\n</tool_call>', "", [W]),
    (HERMES, f'Sure.\n<tool_call>{{"name": "weather", "arguments": {W[1]}}}</tool_call>\n<tool_call>\n{{"name":"add","arguments":{A[1]}}}</tool_call>',
     "Sure.", [W, A]),
    (HERMES, '<tool_call>{"arguments": {"city": "x"}, "name": "weather"}</tool_call> done', "done", [("weather", '{"city": "x"}')]),
    (HERMES, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": 1}"}</tool_call>', "", [("weather", '{"city": 1}')]),
    (HERMES, '<tool_call>{"name": "weather"}</tool_call>', "", [("weather", "{}")]),
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', []),
    (HERMES, "<tool_call>I cannot</tool_call>", "<tool_call>I cannot</tool_call>", []),
    (HERMES, "a < b and <tool", "a < b and <tool", []),
    (HERMES, '{"name": "weather", "arguments": {}}', '{"name": "weather", "arguments": {}}', []),
    (LLAMA3, f'{{"name": "weather", "parameters": {W[1]}}}', "", [W]),
    (LLAMA3, f'<|python_tag|>{{"name": "weather", "parameters": {W[1]}}}; {{"name": "add", "parameters": {A[1]}}}', "", [W, A]),
    (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA3, "The answer {is} 42", "The answer {is} 42", []),
    (MISTRAL, f'[TOOL_CALLS][{{"name": "weather", "arguments": {W[1]}}}, {{"name": "add", "arguments": {A[1]}}}]', "", [W, A]),
    (MISTRAL, f'[{{"name": "weather", "arguments": {W[1]}}}]', "", [W]),
    (MISTRAL, f"[TOOL_CALLS]weather[ARGS]{W[1]}[TOOL_CALLS]add{A[1]}", "", [W, A]),
    (MISTRAL, "[1, 2] is a list", "[1, 2] is a list", []),
]


@pytest.mark.parametrize(("syntax", "text", "content", "calls"), CASES, ids=[f"{c[0].name}-{i}" for i, c in enumerate(CASES)])
def test_calls_are_found_however_the_text_is_cut(syntax: Any, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for size in (1, 2, 3, 7, len(text)):
        reader = Reader(syntax, NAMES)
        found = [e for at in range(0, len(text), size) for e in reader.push(text[at : at + size])] + reader.finish()
        assert gather(found) == (content, calls), f"pieces of {size}"
        assert reader.calls == len(calls)


def test_arguments_come_while_they_are_written() -> None:
    reader = Reader(HERMES, NAMES)
    assert reader.push('<tool_call>{"name": "weather", "arguments": {"ci')[1:] == [CallArguments(0, '{"ci')]
    assert reader.push('ty": "Par') == [CallArguments(0, 'ty": "Par')]
    assert reader.push('is"}}</tool_call>') == [CallArguments(0, 'is"}')]
    cut = Reader(HERMES, NAMES)
    assert gather(cut.push('<tool_call>{"name": "add", "arguments": {"a": 1') + cut.finish()) == ("", [("add", '{"a": 1')])


def test_families_of_real_templates(shared_data: Path) -> None:
    folder = shared_data / "tokenizers" / "chat-templates"
    expected = {
        "Qwen-Qwen2.5-7B-Instruct": HERMES, "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": HERMES, "Qwen-Qwen3-0.6B": HERMES,
        "meta-llama-Llama-3.1-8B-Instruct": LLAMA3, "meta-llama-Llama-3.2-3B-Instruct": LLAMA3, "meta-llama-Llama-3.3-70B-Instruct": LLAMA3,
        "mistralai-Mistral-Nemo-Instruct-2407": MISTRAL, "Mistral-Small-3.2-24B-Instruct-2506": MISTRAL, "google-gemma-2-2b-it": HERMES,
    }
    assert {name: syntax_of((folder / f"{name}.jinja").read_text()).name for name in expected} == {n: s.name for n, s in expected.items()}


def test_a_template_without_tools_is_told_in_words() -> None:
    functions = [TOOLS[0]["function"]]
    history = [Message(role="system", content="Be kind."), Message(role="user", content="Weather?"), Message.model_validate(
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]}),
        Message(role="tool", tool_call_id="1", content="sunny")]
    plain = conversation(history, functions, native=False)
    assert [m["role"] for m in plain] == ["system", "user", "assistant", "user"]
    assert plain[0]["content"].startswith("Be kind.") and '"weather"' in plain[0]["content"] and "<tool_call>" in plain[0]["content"]
    assert json.loads(plain[2]["content"].split("\n")[1]) == {"name": "weather", "arguments": {"city": "Paris"}} and "sunny" in plain[3]["content"]
    native = conversation(history, functions, native=True)
    assert native[0]["content"] == "Be kind." and native[2]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert native[3]["tool_call_id"] == "1" and native[3]["content"] == "sunny"


async def test_a_call_that_the_model_chose(serving: Serving) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    for template in (TEMPLATE, None):
        async with serving(model=Parrot(TEMPLATE) if template else None) as server:
            choice = (await server.chat(call, tools=TOOLS)).json()["choices"][0]
            assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
            [found] = choice["message"]["tool_calls"]
            assert found["type"] == "function" and found["id"].startswith("call_")
            assert found["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
            plain = (await server.chat("no tool needed", tools=TOOLS)).json()["choices"][0]
            assert plain["message"]["content"] == "no tool needed" and plain["finish_reason"] == "stop" and "tool_calls" not in plain["message"]
            off = (await server.chat(call, tools=TOOLS, tool_choice="none")).json()["choices"][0]
            assert off["message"]["content"] == call and off["finish_reason"] == "stop"


async def test_a_streamed_call(serving: Serving) -> None:
    call = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    async with serving() as server:
        chunks = events(await server.chat(call, tools=TOOLS, stream=True))
        deltas = [c["choices"][0]["delta"] for c in chunks]
        calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
        assert calls[0]["function"]["name"] == "add" and calls[0]["id"] and all(c["index"] == 0 for c in calls)
        assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"a": 1, "b": 2} and len(calls) > 3
        assert "".join(d.get("content", "") for d in deltas) == "Let me see."
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
async def test_a_forced_call(serving: Serving, syntax: Any) -> None:
    """The model would only ever write the letter a: the grammar makes a valid call of it, in each family's syntax."""
    mark = {"hermes": "", "llama3": "{# <|python_tag|> #}", "mistral": "{# [TOOL_CALLS] #}"}[syntax.name]
    async with serving(model=Parrot(f"{{# tools #}}{mark}{TEMPLATE}")) as server:
        for choice_field, allowed in (("required", {"weather", "add"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"})):
            for seed in range(3):
                body = {"model": "parrot", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS, "tool_choice": choice_field, "seed": seed,
                        "max_tokens": 600, "temperature": 1.5, "parallel_tool_calls": False}
                choice = (await server.client.post("/v1/chat/completions", json=body)).json()["choices"][0]
                [call] = choice["message"]["tool_calls"]
                arguments = json.loads(call["function"]["arguments"])
                assert call["function"]["name"] in allowed and choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
                if call["function"]["name"] == "weather":
                    assert set(arguments) == {"city"} and arguments["city"] in ("Paris", "Seoul")
                else:
                    assert set(arguments) == {"a", "b"} and all(isinstance(v, int) for v in arguments.values())


async def test_several_forced_calls(serving: Serving) -> None:
    both = ('<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Seoul"}}\n</tool_call>')
    async with serving() as server:
        choice = (await server.chat(both, tools=TOOLS, tool_choice="required", temperature=0, max_tokens=400)).json()["choices"][0]
        assert [c["function"]["name"] for c in choice["message"]["tool_calls"]] == ["add", "weather"]


async def test_an_impossible_tool_is_the_clients_mistake(serving: Serving) -> None:
    async with serving() as server:
        bad = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "nonsense"}}}}}]
        reply = await server.chat("x", tools=bad, tool_choice="required")
        assert reply.status_code == 400 and reply.json()["error"]["param"] == "tools"
        missing = await server.chat("x", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}})
        assert missing.status_code == 400 and missing.json()["error"]["param"] == "tool_choice"
