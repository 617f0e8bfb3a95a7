"""`octavo explain`: what a name means and what runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.cli import main
from octavo.cli.explain import _text, explain
from octavo.errors import SchemeError
from octavo.kernels.op import Problem

MACHINE: Any = SimpleNamespace(isa="avx2")


class Partial:
    """Stands in for a backend that runs INT8, INT5 and bfloat16 weights, INT8 activations with INT8 weights only, and no cache but bf16."""

    def supports(self, problem: Problem) -> str | None:
        if problem.cache is not None:
            return None if problem.cache.format == "bf16" else f"no cache of {problem.cache.format}"
        assert problem.weight is not None and problem.activation is not None
        if problem.weight.format not in ("int8", "int5", "bf16"):
            return f"no kernel for {problem.weight.format}"
        if problem.activation.quantized and (problem.weight.format, problem.activation.format) != ("int8", "int8"):
            return f"no kernel for activations of {problem.activation.format}"
        return None


BACKEND: Any = Partial()


def test_native_emulated_and_no() -> None:
    assert explain("W8A8", MACHINE, BACKEND)["runs"]["linear"]["answer"] == "native"
    wide = explain("W5g32A16", MACHINE, BACKEND)["runs"]["linear"]
    assert wide["answer"] == "native" and wide["bits_in_memory"] == 8.5  # five bits lie in eight
    emulated = explain("Wfp8A16", MACHINE, BACKEND)["runs"]["linear"]
    assert emulated["answer"] == "emulated" and "bf16" in emulated["why"] and "no kernel for fp8e4m3" in emulated["why"]
    assert emulated["bits_in_memory"] == 16
    partly = explain("W8Afp8", MACHINE, BACKEND)["runs"]["linear"]
    assert partly["answer"] == "emulated" and "activations stay in 16 bits" in partly["why"]
    assert explain("C4", MACHINE, BACKEND)["runs"]["cache"] == {"answer": "no", "why": "no cache of int4"}
    nothing: Any = SimpleNamespace(supports=lambda problem: "nothing runs")
    assert explain("W8A8", MACHINE, nothing)["runs"]["linear"]["answer"] == "no"


def test_everything_about_a_name() -> None:
    found = explain("Q4_K_M", MACHINE, BACKEND)
    assert found["canonical"] == "W4g32zA16C16" and found["source"] == "llama.cpp" and "most" in found["note"]
    assert found["bits_per_weight"] == 4.625 and found["overrides"][0] == ["*lm_head*", "W8A16C16"]
    assert "groups of 32 along the input, fp16 scales, with zero points" in found["weight"]
    json.dumps(found)
    preset = explain("4bit", MACHINE, BACKEND)
    assert preset["canonical"] == "W4g64A8g64C16" and "groups of 64" in preset["reason"]
    assert explain("W8C8", MACHINE, BACKEND)["bits_per_cached_value"] == 8.5  # one fp32 scale per head of 64


def test_the_text_reads_as_a_page() -> None:
    text = _text(explain("wint4", MACHINE, BACKEND))
    assert text.splitlines()[0] == "wint4 = W4A16C16"
    assert "4.125 bits per weight, scales included" in text and "*lm_head*: W8A16C16" in text and "on this machine (avx2)" in text


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(SchemeError, match="did you mean"):
        explain("W4g64Q8", MACHINE, BACKEND)


def test_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "W4g64A8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["canonical"] == "W4g64A8C16"
    assert {part: verdict["answer"] for part, verdict in found["runs"].items()} == {"linear": "native", "cache": "native"}
    assert main(["explain", "fp8_block"]) == 0
    assert "emulated" in capsys.readouterr().out
    assert main(["explain", "W4q"]) == 2
    assert "character 3" in capsys.readouterr().err
