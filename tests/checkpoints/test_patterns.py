"""Regular expressions out of files: the same answers as Python's `re`, and no pattern that takes long."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoints._patterns import PatternError, compiled

NAMES = ["model.layers.18.mlp.gate_proj",
         "model.layers.3.self_attn.q_proj", "lm_head", "model.layers.12.mlp.shared_expert.up_proj", "", "a", "aaab", "a.b-c_d9"]
PATTERNS = [r".*\.18\..*gate.*", r"model\.layers\.(?:1[0-9]|2[0-9])\..*", r"lm_head", r".*(?!.*shared).*", r"^(?!.*shared_expert).*proj$", r"a*?b",
            r"(?:a|aa)+b",
            r"[^.]*", r"[\w.]+", r"\bmlp\b", r"(?P<x>a)b?", r"a{2,3}b", r"a{2}", r"[a-c\-]+", r"x|", r"(?=a)aab?", r"\d+|\D+", r"(?:.*\.)?mlp\..*", r"a{,2}"]


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_as_python_answers(text: str, name: str) -> None:
    ours, theirs = compiled(text), re.compile(text)
    assert (ours.begins(name), ours.within(name), ours.whole(name)) == tuple(bool(f(name)) for f in (theirs.match, theirs.search, theirs.fullmatch))


@settings(max_examples=300, deadline=None)
@given(st.text("ab.*+?|()[]^${}1,\\d", max_size=12), st.text("ab1.", max_size=8))
def test_never_another_answer(text: str, name: str) -> None:
    try:
        ours = compiled(text)
    except PatternError:
        return
    theirs = re.compile(text)  # what is taken here is a pattern there
    assert (ours.begins(name), ours.within(name)) == (bool(theirs.match(name)), bool(theirs.search(name)))


@pytest.mark.parametrize("text", [r"(a*)*b", r"(a|a)*b", r"(?:a+)+b", r".*a.*a.*a.*a.*a.*a.*b", r"(?:(?:.*,)*x)", "a?" * 60 + "a" * 60 + "b", r"(?:.*a){12}b"])
def test_hostile_patterns_end_soon(text: str) -> None:
    began = time.perf_counter()
    assert not compiled(text).begins("a" * 200)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("text", ["(", ")", "[", "a**", "*", r"(a)\1", "(?<=a)b", "(?i)a", "a{5000}", "((a*)*)*", "(" * 30 + ")" * 30, "x" * 3000,
                                  r"\x41", "[b-a]", "a\\"])
def test_refused(text: str) -> None:
    with pytest.raises(PatternError):
        compiled(text)
