"""Tokens to text and back, and chat templates, against `tokenizers` and transformers."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from octavo.errors import RequestError
from octavo.text import Text
from octavo.text.template import ChatTemplate

WORDS = "Hello wörld, naïve 日本語 🙂👩‍👩‍👧 \n\ttabs  spaces <|im_end|> end"


@cache
def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate(alphabet)}
    for pair in (("Ġ", "t"), ("h", "e"), ("l", "l"), ("æ", "Ĺ"), ("ð", "Ł")):
        vocabulary["".join(pair)] = len(vocabulary)
    merges = [("Ġ", "t"), ("h", "e"), ("l", "l"), ("æ", "Ĺ"), ("ð", "Ł")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    tokenizer.add_tokens([AddedToken("<tool call>"), AddedToken("→")])
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁▁", *"abcdefghijklmnopqrstuvwxyz", "▁the", "é", "日"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


@cache
def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(["▁", "a", "b", "▁a"])}, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@cache
def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "!": 3, "do": 4, "n": 5, "'": 6, "t": 7}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def streamed(text: Text, ids: list[int], **options: Any) -> str:
    stream = text.stream(**options)
    return "".join([stream.push(i) for i in ids]) + stream.flush()


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back(make: Any, value: str) -> None:
    tokenizer, text = make(), Text(make())
    ids = text.encode(value)
    assert text.decode(ids) == tokenizer.decode(ids)
    if make is byte_level and "<|im_" not in value:
        assert text.decode(ids) == value


@given(st.lists(st.integers(0, 264), max_size=30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_byte_level_tokens_decode_as_in_tokenizers(ids: list[int], skip: bool) -> None:
    assert streamed(Text(byte_level()), ids, skip_special=skip) == byte_level().decode(ids, skip_special_tokens=skip)


@given(st.lists(st.sampled_from([*range(3), *range(3 + 32, 3 + 127), *range(259, 290)]), max_size=30), st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_sentencepiece_tokens_decode_as_in_tokenizers(ids: list[int], skip: bool) -> None:
    """Fallback bytes are ASCII here, so every run of them is valid."""
    assert streamed(Text(sentencepiece()), ids, skip_special=skip) == sentencepiece().decode(ids, skip_special_tokens=skip)


@given(st.lists(st.integers(0, 3), max_size=12))
@settings(max_examples=100, deadline=None)
def test_metaspace_tokens_decode_as_in_tokenizers(ids: list[int]) -> None:
    assert streamed(Text(metaspace()), ids) == metaspace().decode(ids)


@given(st.lists(st.integers(0, 7), max_size=12))
@settings(max_examples=100, deadline=None)
def test_other_decoders_are_compared(ids: list[int]) -> None:
    text = Text(wordpiece())
    assert not text._pieces.by_bytes
    assert streamed(text, ids, skip_special=False) == wordpiece().decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_no_piece_of_a_character_is_given_out(make: Any) -> None:
    text = Text(make())
    stream = text.stream()
    parts = [stream.push(i) for i in text.encode(WORDS)]
    assert not any("\ufffd" in part for part in parts)
    assert "🙂" in parts or "🙂" in "".join(parts)
    assert stream.flush() == ""


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    text = Text(byte_level())
    ids = text.encode("🙂")[:-1]
    stream = text.stream()
    assert [stream.push(i) for i in ids] == [""] * len(ids)
    assert stream.flush() == "\ufffd"


def test_invalid_fallback_bytes_spoil_only_themselves() -> None:
    text = Text(sentencepiece())
    ids = [3 + b for b in "é".encode()] + [3 + 0xFF] + [3 + b for b in "日".encode()]
    assert text.decode(ids) == "é\ufffd日"


def test_a_continued_text_keeps_its_first_space() -> None:
    text = Text(sentencepiece())
    ids = [text.tokenizer.token_to_id("▁the")]
    assert streamed(text, ids) == "the"
    assert streamed(text, ids, continued=True) == " the"


def test_token_bytes_and_special_tokens() -> None:
    text = Text(byte_level(), {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>"}, {"eos_token_id": [3, 5]})
    end = text.tokenizer.token_to_id("<|im_end|>")
    assert text.eos_ids == (3, 5, end)
    assert text.bos_id == text.tokenizer.token_to_id("<|im_start|>")
    assert b"".join(text.token_bytes(i) for i in text.encode("日本")) == "日本".encode()
    assert text.token_bytes(10**6) == b""
    assert text.decode([end]) == "" and text.decode([end], skip_special=False) == "<|im_end|>"


def test_real_tokenizers(tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    text = Text(tokenizer)
    ids = text.encode("Once upon a time, there was a 🙂.")
    assert text.decode(ids) == tokenizer.decode(ids) == "Once upon a time, there was a 🙂."


# -- chat templates ------------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather <now> & here", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "a city"}}, "required": ["city"]}}}]
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hello <b>"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n"}, {"role": "assistant", "content": " Hello! "},
               {"role": "user", "content": "Why?"}],
    "tool": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
             {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "sunny"}, {"role": "user", "content": "Thanks"}],
    "reasoning": [{"role": "user", "content": "2+2"}, {"role": "assistant", "reasoning": "easy", "content": "4"}, {"role": "user", "content": "ok"}],
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


compiled = cache(ChatTemplate)


def ours(source: str, messages: list[dict[str, Any]], tools: Any, prompt: bool, **extra: Any) -> str:
    return compiled(source).render(messages, tools=tools, documents=None, add_generation_prompt=prompt, variables={**NAMES, **extra})


def test_templates_render_as_in_transformers(shared_data: Path) -> None:
    """Every real template, with and without tools: the same text, or both refuse."""
    from transformers.utils.chat_template_utils import render_jinja_template

    sources = sorted((shared_data / "tokenizers" / "chat-templates").glob("*.jinja"))
    assert len(sources) > 60
    rendered = 0
    for path in sources:
        source = path.read_text()
        for name, messages in CHATS.items():
            for tools in (None, TOOLS):
                for extra in ({}, {"enable_thinking": False}):
                    try:
                        expected = render_jinja_template([messages], tools=tools, chat_template=source, add_generation_prompt=True, **NAMES, **extra)[0][0]
                    except Exception as error:  # whatever the template raises, ours must refuse as well
                        with pytest.raises(RequestError):
                            ours(source, messages, tools, True, **extra)
                        assert error
                        continue
                    assert ours(source, messages, tools, True, **extra) == expected, (path.name, name)
                    rendered += 1
    assert rendered > 700


HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "large range": "{% for a in range(10**9) %}{% endfor %}",
    "string times number": "{{ 'a' * 10**9 }}",
    "list times number": "{{ ([1] * 10**9) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "doubling by plus": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by tilde": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by set blocks": "{% set s = 'aaaaaaaa' %}" + "{% set s %}{{ s }}{{ s }}{% endset %}" * 60,
    "lists": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "replace": "{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}",
    "replace filter": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | length }}",
    "join": "{{ ('a' * 1000000).join(['b'] * 1000000) | length }}",
    "join filter": "{{ (['b'] * 1000000) | join('a' * 1000000) | length }}",
    "ljust": "{{ 'a'.ljust(10**10) | length }}",
    "center filter": "{{ 'a' | center(10**10) | length }}",
    "indent filter": "{{ ('a\n' * 1000000) | indent('b' * 1000000) | length }}",
    "format width": "{{ '{:>9999999999}'.format('a') | length }}",
    "format nested width": "{{ '{:>{}}'.format('a', 9999999999) | length }}",
    "percent width": "{{ '%9999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (9999999999, 1) }}",
    "percent filter": "{{ '%9999999999d' | format(1) }}",
    "way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "way out by a loop": "{{ self._TemplateReference__context }}{{ raise_exception.__globals__ }}",
    "namespace": "{{ namespace(__class__=1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    began = time.monotonic()
    with pytest.raises(RequestError):
        result = ours(HOSTILE[name], CHATS["one"], None, True)
        # Jinja answers an unsafe attribute with an undefined value: nothing leaks, and nothing large is made.
        if name.startswith("way out") and result == "":
            raise RequestError("nothing came out")
    assert time.monotonic() - began < 10


def test_template_errors_are_request_errors() -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        ours("{{ raise_exception('roles must alternate') }}", CHATS["one"], None, True)
    with pytest.raises(RequestError, match="does not parse"):
        ours("{% if %}", CHATS["one"], None, True)
    with pytest.raises(RequestError, match="fails on these messages"):
        ours("{{ 'a' + 1 }}", CHATS["one"], None, True)
    with pytest.raises(RequestError, match="no chat template"):
        Text(byte_level()).chat(CHATS["one"])


def test_named_templates_and_special_tokens() -> None:
    config = {"eos_token": "<|im_end|>", "chat_template": [
        {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}{{ mood }}"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]}
    text = Text(byte_level(), config)
    assert text.chat(CHATS["one"], mood="!") == "Hello <b><|im_end|>!"
    assert text.chat(CHATS["one"], tools=[{"a": "<&>"}]) == '[{"a": "<&>"}]'
    assert text.decode(text.encode_chat("<|im_start|>hi"), skip_special=False) == "<|im_start|>hi"
