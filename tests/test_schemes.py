"""The grammar of precision, plans and presets."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import formats
from octavo.errors import SchemeError
from octavo.schemes import NAMES, Plan, Scheme, TensorSpec, choose, known_names, parse, parse_tensor

WEIGHTS = ["tensor", "channel", "group", "block"]
RUNTIME = ["tensor", "token", "group"]


@st.composite
def specs(draw: st.DrawFn, role: str) -> TensorSpec:
    """Every TensorSpec that a role can have."""
    number = draw(st.sampled_from([f for f in formats.formats().values() if not f.scale_only and (role == "weight" or f.kind != "trellis")]))
    if not number.scaled:
        return TensorSpec(number.token)
    if number.kind == "trellis":
        return TensorSpec(number.token, "channel", scale_format=draw(st.sampled_from(["fp32", "fp16", "bf16"])))
    dynamic = role != "weight" and draw(st.booleans())
    if number.two_level or number.scale_format == "e8m0":
        return TensorSpec(number.token, number.granularity, number.size, scale_format=number.scale_format, dynamic=dynamic)
    granularity = draw(st.sampled_from(WEIGHTS if role == "weight" else RUNTIME))
    size = draw(st.integers(1, 4096)) if granularity in ("group", "block") else 0
    columns = draw(st.integers(1, 4096)) if granularity == "block" else 0
    symmetric = number.kind != "int" or draw(st.booleans())
    outliers = role == "activation" and number.kind == "int" and dynamic and granularity != "tensor"
    threshold = draw(st.just(0.0) | st.integers(1, 10**6).map(float) | st.floats(0.001, 1e6)) if outliers else 0.0
    rotated = role == "activation" and dynamic and granularity != "tensor" and draw(st.booleans())
    scale = draw(st.sampled_from(["fp32", "fp16", "bf16", "e8m0"]))
    return TensorSpec(number.token, granularity, size, columns, symmetric, scale, dynamic, threshold, rotated)


def scheme_of(weight: TensorSpec, activation: TensorSpec, cache: TensorSpec) -> Scheme:
    return Scheme(weight, activation if weight.quantized else replace(activation, rotated=False), cache)


SCHEMES = st.builds(scheme_of, specs("weight"), specs("activation"), specs("cache"))


@given(SCHEMES)
@settings(max_examples=500)
def test_every_scheme_prints_a_name_that_reads_back(scheme: Scheme) -> None:
    name = str(scheme)
    assert parse(name) == scheme
    assert parse(name.upper()) == parse(name.lower()) == scheme


@given(SCHEMES, st.lists(st.tuples(st.sampled_from(["*v_proj*", "model.layers.?.mlp.*", "lm_head.weight"]), st.none() | SCHEMES), max_size=3))
@settings(max_examples=100)
def test_every_plan_survives_json_and_its_own_name(scheme: Scheme, overrides: list[tuple[str, Scheme | None]]) -> None:
    plan = Plan(scheme, tuple(overrides))
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.parse(str(plan)).overrides[: len(overrides)] == plan.overrides


@given(st.text(max_size=20))
@settings(max_examples=300)
def test_any_text_parses_or_is_refused_with_a_place(text: str) -> None:
    try:
        scheme = parse(text)
    except SchemeError as error:
        assert "precision" in error.where
    else:
        assert parse(str(scheme)) == scheme


@pytest.mark.parametrize("name", [n.spelling for n in NAMES.values()])
def test_every_name_of_other_tools_parses(name: str) -> None:
    scheme = parse(name)
    assert parse(str(scheme)) == scheme
    assert parse(name.upper()) == parse(name.replace("_", "-")) == scheme


def test_canonical_names() -> None:
    for name, canonical in {
        "W8A8C8": "W8A8C8", "w8a8c16": "W8A8C16", "W4A16C16": "W4A16C16", "WInt4": "W4A16C16", "weight-only int4": "W4A16C16",
        "weight only int8": "W8A16C16", "WNF4A8C8": "WNF4A8C8", "wnf4": "WNF4A16C16", "Wfp8Afp8": "Wfp8Afp8C16", "W4Afp8": "W4Afp8C16",
        "Wmxfp4A16": "Wmxfp4A16C16", "Wnvfp4Anvfp4Cfp8": "Wnvfp4Anvfp4Cfp8", "W4g128zA8C8": "W4zA8C8", "W4g64A8": "W4g64A8C16", "C8": "W16A16C8",
        "C4z": "W16A16C4", "C4y": "W16A16C4y", "K8V4": "W16A16K8V4", "V8K8": "W16A16C8", "W4K4": "W4A16K4V16",
        "W8": "W8A16C16", "wint2": "W2g64A16C16", "FP8_BLOCK": "Wfp8b128x128Afp8g128C16", "block_wise_fp8": "Wfp8b128x128Afp8g128C16",
        "FP8_DYNAMIC": "Wfp8Afp8C16", "FP8": "Wfp8tAfp8tsC16", "NVFP4A16": "Wnvfp4A16C16", "Q4_K_M": "W4g32zA16C16", "Q8_0": "W8g32A16C16",
        "Q6_K": "W6g16A16C16", "llm.int8": "W8A8o6C16", "W8A8o0": "W8A8C16",
        "w8a8hc8": "W8A8hC8", "W4g64A8g32o6h@fp16": "W4g64A8g32o6h@fp16C16",
        "W4g64A8g64o2.50C8": "W4g64A8g64o2.5C8", "EETQ": "W8A16C16", "INT8": "W8A8C16", "W4A16_ASYM": "W4zA16C16", "Wfp32Afp32Cfp32": "W32A32C32",
        "bf16": "W16A16C16", "W4 A16 C8": "W4A16C8", "W5g32@fp32A8g128sC4g32z": "W5g32@fp32A8g128sC4g32z", "W8rA8r": "W8A8C16",
    }.items():
        assert str(parse(name)) == canonical, name


def test_what_the_parts_mean() -> None:
    scheme = parse("W4g128zA8C8")
    assert scheme.weight == TensorSpec("int4", "group", 128, symmetric=False, scale_format="fp16")
    assert scheme.activation == scheme.cache == TensorSpec("int8", "token", dynamic=True)
    assert parse("W8").weight == TensorSpec("int8", "channel") and parse("W8").activation == TensorSpec("bf16")
    assert parse("Wnvfp4").weight == TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3")
    assert parse("fp8_block").weight == TensorSpec("fp8e4m3", "block", 128, 128)
    assert parse_tensor("int8", "cache") == parse_tensor("C8", "cache") == parse_tensor("8", "cache") == scheme.cache
    assert parse_tensor("bf16", "cache") == TensorSpec("bf16")


def test_bits_per_weight_count_everything() -> None:
    assert parse("W4g64").weight.bits_per_weight() == 4.25
    assert parse("W4g32z").weight.bits_per_weight() == 4 + (16 + 4) / 32
    assert parse("Wmxfp4").weight.bits_per_weight() == 4.25
    assert parse("W8").weight.packed_bytes((10, 100)) == 1000 + 40
    assert parse("W3g128").weight.packed_bytes((2, 200)) == (400 * 3 + 4 * 16 + 7) // 8
    assert parse("Wfp8b128x128").weight.scale_shape((300, 129)) == (3, 2)
    assert TensorSpec("bf16").packed_bytes((7,)) == 14


@pytest.mark.parametrize(("name", "character", "hint"), [
    ("W4g64Q8", 6, "W4g64A8"), ("WNF5", 2, "did you mean .*WNF4"), ("FP8_BLCK", 1, "FP8_BLOCK"), ("W8W8", 3, "given twice"), ("", 1, "empty"),
    ("W8A9", 4, "no number format for the activation"), ("Wnf4z", 1, "only integers have zero points"), ("Wmxfp4g64", 1, "fixes groups of 32"),
    ("W8A8b1x1", 3, "cannot have one scale per block"), ("W4g0", 1, "size 0"), ("W8s", 3, "cannot read"), ("W8o6", 3, "cannot read"),
    ("W8A8C8o6", 7, "cannot read"), ("W8h", 3, "cannot read"), ("W8A8C8h", 7, "cannot read"), ("W8A8sh", 3, "quantized as it comes"),
    ("W8A16h", 3, "unquantized"), ("W8A8ho6", 6, "cannot read"),
    ("W8A8ts o6", 8, "expected"), ("W8A8so6", 3, "only integers whose scales are computed"), ("W8Afp8o6", 3, "only integers"),
    ("W8A8o9999999", 3, "outliers begin at"), ("W8A8o", 5, "cannot read"), ("W4g99999999999", 1, "do not fit"),
])
def test_errors_point_at_the_characters(name: str, character: int, hint: str) -> None:
    import re

    with pytest.raises(SchemeError) as caught:
        parse(name)
    assert re.search(hint, str(caught.value)), str(caught.value)
    if "cannot have one scale" not in hint:
        assert f"character {character}:" in str(caught.value), str(caught.value)


def test_impossible_specs_are_refused() -> None:
    for arguments in ({"format": "int8"}, {"format": "int8", "granularity": "group"}, {"format": "bf16", "granularity": "channel"},
                      {"format": "e8m0"}, {"format": "fp8", "granularity": "tensor"}, {"format": "int8", "granularity": "channel", "scale_format": "x"},
                      {"format": "int8", "granularity": "channel", "scale_format": "fp8e4m3"}, {"format": "int8", "granularity": "row"}):
        with pytest.raises(SchemeError):
            TensorSpec(**arguments)  # type: ignore[arg-type]
    with pytest.raises(SchemeError, match="this one is not"):
        parse("W16A8h")
    with pytest.raises(SchemeError, match="only activations"):
        Scheme(TensorSpec("int8", "channel"), TensorSpec("bf16"), TensorSpec("int8", "token", dynamic=True, rotated=True))
    with pytest.raises(SchemeError, match="stored"):
        Scheme(TensorSpec("int8", "channel", dynamic=True), TensorSpec("bf16"), TensorSpec("bf16"))


def test_plans_keep_the_outer_layers_at_8_bits_unless_told() -> None:
    plan = Plan.parse("W4g64A8")
    assert str(plan.scheme_for("lm_head.weight")) == str(plan.scheme_for("model.embed_tokens.weight")) == "W8A8C16"
    assert str(plan.scheme_for("model.layers.0.mlp.up_proj.weight")) == "W4g64A8C16"
    assert Plan.parse("W8A8").overrides == () == Plan.parse("Wfp8").overrides
    told = Plan.parse("W4g64A8; lm_head*=W4g64A8; *layers.0.*=keep; *v_proj*=W6g32")
    assert str(told.scheme_for("lm_head.weight")) == "W4g64A8C16" and told.scheme_for("model.layers.0.self_attn.v_proj.weight") is None
    assert str(told.scheme_for("model.layers.1.self_attn.v_proj.weight")) == "W6g32A16C16"
    assert str(told.scheme_for("model.embed_tokens.weight")) == "W8A8C16"
    for bad in ("W4; lm_head", "W4; =W8", "W4; a=W99"):
        with pytest.raises(SchemeError):
            Plan.parse(bad)
    bad_plans: list[Any] = [{}, {"default": "W4", "overrides": [1]}, {"default": "W4", "overrides": None}, []]
    for data in bad_plans:
        with pytest.raises(SchemeError):
            Plan.from_json(data)


@pytest.mark.parametrize(("preset", "capability", "name", "why"), [
    ("8bit", None, "W8A8hC16", "INT8"), ("4bit", None, "W4g64A8g64C16", "groups of 64"), ("16bit", None, "W16A16C16", ""),
    ("32bit", None, "W32A32C32", ""),
    ("8-bit", (8, 9), "Wfp8Afp8C16", "FP8"), ("8bit", (9, 0), "Wfp8Afp8C16", "FP8"), ("8bit", (8, 0), "W8A8C16", "no FP8"),
    ("8bit", (7, 0), "W8A16C16", "neither"), ("4bit", (9, 0), "W4Afp8C16", "Hopper"), ("4bit", (12, 0), "Wnvfp4Anvfp4C16", "FP4"),
    ("4bit", (8, 6), "W4A16C16", "no FP4"), ("16bit", (7, 0), "W16A16C16", ""),
])
def test_presets_by_hardware(preset: str, capability: tuple[int, int] | None, name: str, why: str) -> None:
    choice = choose(preset, SimpleNamespace(isa="avx2"), capability)  # type: ignore[arg-type]
    assert str(choice.plan.default) == name and why in choice.reason and choice.asked == preset


def test_names_pass_and_a_gpu_refuses_what_it_cannot() -> None:
    machine: Any = SimpleNamespace(isa="avx2")
    assert choose("WNF4", machine).plan == Plan.parse("WNF4")
    assert choose("FP8_DYNAMIC", machine, (9, 0)).plan == Plan.parse("Wfp8Afp8")
    with pytest.raises(SchemeError, match=r"7\.0.*Ada.*W8A16"):
        choose("FP8_DYNAMIC", machine, (7, 0))
    with pytest.raises(SchemeError, match="W8A8"):
        choose("Wfp8Afp8", machine, (8, 0))
    with pytest.raises(SchemeError, match="Wnvfp4A16"):
        choose("NVFP4", machine, (9, 0))
    with pytest.raises(SchemeError, match="depends on the machine"):
        parse("8bit")


def test_known_names_are_all_readable() -> None:
    for name in known_names():
        if not name.endswith("bit"):
            parse(name)
