"""Structured output: a grammar says which tokens may come next (llguidance).

Compiling takes 1 ms to 1 s and happens in the thread that submits, never in the engine's; a mask costs about 50 us a step.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from ..text import Text

KEPT = 64           # compiled grammars
LONGEST = 1 << 20   # characters of a schema or grammar


class Grammar:
    """The state of one choice in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._bits = np.zeros((vocabulary + 31) // 32, np.int32)

    def allowed(self) -> np.ndarray:
        """[vocabulary] bool: tokens that may come next, end tokens included where the grammar may end. Raises RequestError."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        return np.unpackbits(self._bits.view(np.uint8), count=self._vocabulary, bitorder="little").view(bool)

    def accept(self, token: int) -> bool:
        """Move on by a token that was allowed; True when nothing but the end can follow."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the grammar failed: {self._matcher.get_error().splitlines()[0]}", param="response_format")


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the latest. Thread-safe."""

    def __init__(self, text: Text, vocabulary: int, end_ids: tuple[int, ...]) -> None:
        self._text, self._vocabulary, self._end_ids = text, vocabulary, end_ids
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, grammar: dict[str, Any]) -> Grammar:
        """{"json_schema": schema} | {"json_object": True} | {"regex": ...} | {"lark": ...}. Raises RequestError (400)."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            key = json.dumps(grammar, sort_keys=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"the grammar is not JSON: {error}", param="response_format") from None
        if len(key) > LONGEST:
            raise RequestError(f"the grammar has {len(key)} characters, more than {LONGEST}", param="response_format")
        with self._lock:
            tokenizer = self._vocabulary_tokenizer()
            matcher = self._compiled.get(key)
        if matcher is None:                       # outside the lock: a slow grammar keeps nobody else waiting
            matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=LLParserLimits(verbose_errors=False))
            if matcher.is_error():
                raise RequestError(f"the grammar cannot be compiled: {matcher.get_error().strip()[:500]}", param="response_format")
        with self._lock:
            self._compiled[key] = matcher
            self._compiled.move_to_end(key)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
            return Grammar(matcher.deep_copy(), self._vocabulary)

    def _vocabulary_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            self._tokenizer = LLTokenizer(self._text.to_json(), n_vocab=self._vocabulary, eos_token=list(self._end_ids))
        return self._tokenizer


def _source(grammar: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    if len(grammar) != 1:
        raise RequestError(f"a grammar names exactly one of json_schema, json_object, regex, lark, not {sorted(grammar)}", param="response_format")
    kind, value = next(iter(grammar.items()))
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema({"type": "object"})
    if kind == "json_schema":
        if not isinstance(value, (dict, bool)):
            raise RequestError("the JSON schema must be an object", param="response_format")
        return LLMatcher.grammar_from_json_schema(json.dumps(value))
    if kind in ("regex", "lark") and isinstance(value, str):
        return LLMatcher.grammar_from_regex(value) if kind == "regex" else LLMatcher.grammar_from_lark(value)
    raise RequestError(f"unknown grammar {kind!r}; known: json_schema, json_object, regex, lark", param="response_format")
