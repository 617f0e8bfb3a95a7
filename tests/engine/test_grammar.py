"""Structured output: whatever a model wants to write, what comes out is valid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from jsonschema import validate

from octavo.engine import Engine, Finish, Request, Sampling

from .conftest import EOS, HistoryModel, read, tokens, words

Make = Callable[..., Engine]

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "maxItems": 3},
        "score": {"type": "number", "multipleOf": 0.5, "maximum": 10, "minimum": 0},
    },
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "object", "additionalProperties": False, "required": ["kind"], "properties": {"kind": {"const": "x"}, "ok": {"type": "boolean"}}},
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 10, "maximum": 99}]},
    {"type": "array", "minItems": 2, "maxItems": 2, "items": {"$ref": "#/$defs/p"}, "$defs": {"p": {"enum": ["north", "south"]}}},
]


class Babbler(HistoryModel):
    """Likes letters, digits and the end, whatever came before; never gets stuck in spaces."""

    def logits(self, history: list[int], digest: int | None = None) -> np.ndarray:
        row = super().logits(history, digest)
        row[EOS] = 4
        for sign in (" ", "\n", "\t", "\r"):
            row[self.text.encode(sign)[0]] = -50
        return row


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_json_schema_output_is_valid(make_engine: Make, index: int) -> None:
    engine = make_engine(Babbler())
    for seed in range(8):
        request = Request((1, 2), Sampling(seed=seed, temperature=1.0, max_tokens=400, grammar={"json_schema": SCHEMAS[index]}))
        deltas = read(engine.submit(request))[0]
        assert deltas[-1].finish is Finish.STOP, words(deltas)
        validate(json.loads(words(deltas)), SCHEMAS[index])


def test_json_object(make_engine: Make) -> None:
    engine = make_engine(Babbler())
    for seed in range(5):
        deltas = read(engine.submit(Request((1,), Sampling(seed=seed, max_tokens=450, grammar={"json_object": True}))))[0]
        if deltas[-1].finish is Finish.STOP:
            assert isinstance(json.loads(words(deltas)), dict)


def test_regex_and_lark(make_engine: Make) -> None:
    engine = make_engine(Babbler())
    for seed in range(5):
        text = words(read(engine.submit(Request((1,), Sampling(seed=seed, grammar={"regex": r"[a-c]{3}-[0-9]{2,4}"}))))[0])
        assert re.fullmatch(r"[a-c]{3}-[0-9]{2,4}", text)
        text = words(read(engine.submit(Request((1,), Sampling(seed=seed, grammar={"lark": 'start: "yes" | "no" " " /[0-9]/'}))))[0])
        assert re.fullmatch(r"yes|no [0-9]", text)


def test_each_choice_has_its_own_state_and_others_are_free(make_engine: Make) -> None:
    engine = make_engine(Babbler())
    free = engine.submit(Request((9,), Sampling(temperature=0, max_tokens=10, ignore_eos=True)))
    choices = read(engine.submit(Request((1,), Sampling(seed=3, max_tokens=200, grammar={"json_schema": PERSON}), n=3)))
    for deltas in choices.values():
        validate(json.loads(words(deltas)), PERSON)
    assert len(tokens(read(free)[0])) == 10


def test_grammar_survives_preemption(make_engine: Make) -> None:
    """Two answers of which one is set back: its grammar goes on where it was."""
    engine = make_engine(Babbler(max_model_len=128), kv_pages=4, max_batch=2)
    schema = {"type": "string", "pattern": "^[a-z]{60,70}$"}
    tickets = [engine.submit(Request((i, *range(30)), Sampling(seed=i, grammar={"json_schema": schema}))) for i in range(2)]
    for ticket in tickets:
        validate(json.loads(words(read(ticket)[0])), schema)
    assert engine.telemetry.preemptions.total >= 1


def test_min_tokens_yields_to_a_complete_grammar(make_engine: Make) -> None:
    deltas = read(make_engine(Babbler()).submit(Request((1,), Sampling(min_tokens=50, max_tokens=60, grammar={"regex": "ab"}))))[0]
    assert words(deltas) == "ab" and deltas[-1].finish is Finish.STOP
