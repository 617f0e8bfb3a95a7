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
from octavo.kernels.reference import ReferenceOps

MACHINE: Any = SimpleNamespace(isa="avx2")


class OnlyInt8:
    """A backend that stands in for the native one."""

    def supports(self, problem: Problem) -> str | None:
        spec = problem.cache or problem.weight
        assert spec is not None
        return None if spec.format in ("int8", "bf16") else f"no kernel for {spec.format}"


BACKENDS = {"native": OnlyInt8(), "reference": ReferenceOps()}


def test_native_emulated_and_no() -> None:
    assert explain("W8A8C8", MACHINE, BACKENDS)["runs"]["linear"]["answer"] == "native"
    emulated = explain("W3A16", MACHINE, BACKENDS)["runs"]["linear"]
    assert emulated["answer"] == "emulated" and "no kernel for int3" in emulated["why"]
    refused = explain("FP8", MACHINE, BACKENDS)["runs"]["linear"]
    assert refused["answer"] == "no" and "calibration" in refused["why"]
    assert explain("C4", MACHINE, BACKENDS)["runs"]["cache"]["answer"] == "no"
    missing = explain("W8A8", MACHINE, {**BACKENDS, "native": "not built"})["runs"]["linear"]
    assert missing["answer"] == "emulated" and "not built" in missing["why"]


def test_everything_about_a_name() -> None:
    found = explain("Q4_K_M", MACHINE, BACKENDS)
    assert found["canonical"] == "W4g32zA16C16" and found["source"] == "llama.cpp" and "most" in found["note"]
    assert found["bits_per_weight"] == 4.625 and found["overrides"][0] == ["*lm_head*", "W8A16C16"]
    assert "groups of 32 along the input, fp16 scales, with zero points" in found["weight"]
    json.dumps(found)
    preset = explain("4bit", MACHINE, BACKENDS)
    assert preset["canonical"] == "W4g64A8C16" and "groups of 64" in preset["reason"]
    assert explain("W8C8", MACHINE, BACKENDS)["bits_per_cached_value"] == 8.5  # one fp32 scale per head of 64


def test_the_text_reads_as_a_page() -> None:
    text = _text(explain("wint4", MACHINE, BACKENDS))
    assert text.splitlines()[0] == "wint4 = W4A16C16"
    assert "4.125 bits per weight, scales included" in text and "*lm_head*: W8A16C16" in text and "on this machine (avx2)" in text


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(SchemeError, match="did you mean"):
        explain("W4g64Q8", MACHINE, BACKENDS)


def test_the_command_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "W4g64A8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["canonical"] == "W4g64A8C16" and found["runs"]["linear"]["answer"] in ("native", "emulated")
    assert main(["explain", "W4q"]) == 2
    assert "character 3" in capsys.readouterr().err
