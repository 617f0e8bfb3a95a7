"""Prompts out of files: the kinds of object, and what is wrong with those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.errors import UsageError
from octavo.traffic import ServiceLevel, Target, random_words, read_prompts, seconds
from octavo.traffic.facts import samples
from octavo.traffic.response import Malformed, Response


def test_the_real_files(shared_data: Path) -> None:
    sql = read_prompts(shared_data / "eval" / "spider-dev-text2sql.jsonl", 64)
    assert len(sql) == 435 and sql[0].messages[0][0] == "user" and "CREATE TABLE" in sql[0].text and sql[0].text.endswith("heavier than 10.")
    chat = read_prompts(shared_data / "chat" / "mt_bench_question.jsonl", 64)
    assert len(chat) == 80 and chat[0].text.startswith("Compose an engaging travel blog post")
    talks = read_prompts(shared_data / "chat" / "fastchat_dummy_conversation.json", 64)
    assert all(p.messages[-1][0] == "user" for p in talks.items)
    assert {role for p in talks.items for role, _ in p.messages} == {"user", "assistant"}


@pytest.mark.parametrize(("line", "text"), [
    ({"prompt": "a"}, "a"), ({"text": "b"}, "b"), ({"question": "c"}, "c"), ({"instruction": "d", "input": "e"}, "d\n\ne"), ({"turns": ["f", "g"]}, "f"),
    ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]}, "s\n\nu"),
])
def test_kinds_of_objects(tmp_path: Path, line: dict[str, object], text: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**line, "max_tokens": 9}) + "\n\n")
    (prompt,) = read_prompts(path, 64).items
    assert prompt.text == text and prompt.max_tokens == 9


@pytest.mark.parametrize(("content", "said"), [
    ("", "no prompts"), ("{}\n", "no prompt under"), ('{"prompt": "a"}\n{"b', "line 2"), ("[1]\n", "no JSON object"), ('{"prompt": 3}', "no prompt under"),
    ('{"prompt": "a", "max_tokens": 0}', "max_tokens"), ('{"messages": 3}', "messages"), ('{"messages": [{"role": "user"}]}', "without text"),
])
def test_bad_files(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as error:
        read_prompts(path, 64)
    assert "p.jsonl" in str(error.value)


def test_random_words_are_never_the_same_twice() -> None:
    prompts = random_words(30, 8, 200)
    assert len({p.text for p in prompts.items}) == 200 and all(len(p.text.split()) == 30 for p in prompts.items)
    assert prompts.items == random_words(30, 8, 200).items != random_words(30, 8, 200, seed=1).items
    assert prompts[201] == prompts[1]


def test_times_and_service_levels() -> None:
    assert [seconds(t, "x") for t in ("5m", "500ms", "3", "1.5s", "1h")] == [300, 0.5, 3, 1.5, 3600]
    assert ServiceLevel.parse("ttft=500ms, itl=50ms,latency=5s") == ServiceLevel(0.5, 0.05, 5.0)
    for bad in ("ttft", "ttft=x", "speed=3", "ttft=1s,ttft=2s", "latency=-1s", ""):
        with pytest.raises(UsageError, match="--slo"):
            ServiceLevel.parse(bad)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:port"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        Target(url, "m")


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_an_address_with_or_without_v1(url: str) -> None:
    request = Target(url, "m", "key").request(random_words(3, 5, 1)[0], True, 0)
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: h:8000\r\n") and b"Authorization: Bearer key" in head
    asked = json.loads(body)
    assert asked["max_tokens"] == 5 and asked["ignore_eos"] and asked["stream_options"] == {"include_usage": True}
    assert "key" not in repr(Target(url, "m", "key"))


def test_responses_of_all_lengths() -> None:
    for wire, body in ((b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
                       (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc"),
                       (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", b""), (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
                       (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=1\r\nab\r\n1\r\nc\r\n0\r\nA: b\r\n\r\n", b"abc")):
        for step in (1, 2, 3, 7, len(wire)):
            response = Response()
            got = b"".join(response.feed(wire[i : i + step]) for i in range(0, len(wire), step))
            assert got == body and response.ended and response.keep, (wire, step)
    until_closed = Response()
    assert until_closed.feed(b"HTTP/1.0 200 OK\r\n\r\nabc") == b"abc" and not until_closed.ended and until_closed.closed() and not until_closed.keep


@pytest.mark.parametrize("wire", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab",
                                  b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"x" * 70_000, b"HTTP/1.1 abc\r\n\r\n"])
def test_answers_that_are_none(wire: bytes) -> None:
    with pytest.raises(Malformed):
        Response().feed(wire)


def test_a_page_of_metrics() -> None:
    page = '# HELP x\nplain 3\nlabelled{a="b c",d="}"} 4.5\nbig 1e+09 1700000000\n'
    assert samples(page) == [("plain", 3.0), ('labelled{a="b c",d="}"}', 4.5), ("big", 1e9)]
