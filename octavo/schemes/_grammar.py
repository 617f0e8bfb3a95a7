"""The grammar of precision: `parse` and `write` are inverse.

    scheme := part+                        each letter at most once; what is missing is 16
    part   := (W|A|C|K|V) format [granularity] [s] [z|y] [o<size>] [h] [@scale]     C: the cache; K, V: its keys and its values apart, in place of C
    format := a number of bits (16 is bf16, 32 is fp32, others are int) or a token: nf4 fp8 fp8e5m2 mxfp4 ...
    granularity := g128 (groups) | b128x128 (blocks) | r (one scale per row) | t (one per tensor)
    s      := static scales of activations or cache, from calibration
    z      := zero points (offsets, in the cache; INT4 there has them unless `y` says that it is symmetric)
    o6     := of activations: values of that size and beyond stay unrounded, as in LLM.int8(); o0.5, o20 ...; o0: none
    h      := of activations: a Hadamard rotation comes first (and the weights are quantized as they meet it)
    @scale := format of the scales: @fp32 @fp16 @bf16 @e8m0

Case does not matter; blanks, `-` and `_` may stand between parts. Other tools' names stand in _names.py.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from functools import cache

from .. import formats
from ..errors import SchemeError
from ._names import NAMES, PRESETS, known_names, normalize
from ._types import SCALE_FORMATS, Role, Scheme, TensorSpec, default_scale_format, default_spec

ROLES: dict[str, Role] = {"w": "weight", "a": "activation", "c": "cache"}
HALVES = ("k", "v")  # of the cache
_GRANULARITY = re.compile(r"g(?P<group>\d+)|b(?P<rows>\d+)x(?P<columns>\d+)|(?P<row>r)|(?P<tensor>t)")
_OUTLIERS = re.compile(r"o(\d{1,9}(?:\.\d{1,20})?)")
_SCALE = re.compile("@(" + "|".join(sorted(SCALE_FORMATS, key=len, reverse=True)) + ")")


@cache
def _format_pattern() -> re.Pattern[str]:
    spellings = {s.lower() for f in formats.formats().values() if not f.scale_only for s in (f.token, *f.aliases)}
    return re.compile("|".join(re.escape(s) for s in sorted(spellings, key=len, reverse=True)))


def parse(name: str) -> Scheme:
    """The Scheme that a name stands for. Raises SchemeError that points at what cannot be read and suggests near names."""
    key = normalize(name)
    if key in PRESETS:
        raise SchemeError("what this preset means depends on the machine", where=f"precision {name!r}",
                          remedy="`octavo explain` says what it means here; W8A8, W4g64A8 and W16 mean the same everywhere")
    if key in NAMES:
        return _parse_grammar(NAMES[key].meaning)
    return _parse_grammar(name)


def parse_tensor(name: str, role: Role) -> TensorSpec:
    """The spec of one part by its name without the letter (`int8`, `8`, `bf16`, `fp8t`, `4g64z`) or with it (`C8`)."""
    letter = role[0]
    stripped = name.strip()
    text = stripped if stripped[:1].lower() == letter else letter + stripped
    spec, end = _part(text.lower(), 0, name if text is stripped else text)
    if end != len(text):
        raise _error(text, end, f"cannot read {text[end:]!r}")
    return spec


def write(scheme: Scheme) -> str:
    """The canonical name: all three parts; granularity and scale format where they are not what the format implies."""
    text = "".join(letter.upper() + _write_part(getattr(scheme, role), role) for letter, role in ROLES.items() if scheme.values is None or role != "cache")
    return text if scheme.values is None else f"{text}K{_write_part(scheme.cache, 'cache')}V{_write_part(scheme.values, 'cache')}"


def write_tensor(spec: TensorSpec, role: Role) -> str:
    """One part of a canonical name, without its letter."""
    return _write_part(spec, role)


def _write_part(spec: TensorSpec, role: Role) -> str:
    number = formats.get(spec.format)
    text = {"bf16": "16", "fp32": "32"}.get(spec.format) or (str(number.bits) if number.kind == "int" else _proper(spec.format))
    if not number.scaled:
        return text
    usual = default_spec(spec.format, role)
    even = usual.symmetric or (spec.granularity, spec.size, spec.columns) != (usual.granularity, usual.size, usual.columns)
    if (spec.granularity, spec.size, spec.columns) != (usual.granularity, usual.size, usual.columns):
        text += {"group": f"g{spec.size}", "block": f"b{spec.size}x{spec.columns}", "tensor": "t"}.get(spec.granularity, "r")
    text += "" if spec.dynamic or role == "weight" else "s"
    text += "" if spec.symmetric is even else "y" if spec.symmetric else "z"
    text += f"o{spec.threshold!r}".removesuffix(".0") if spec.threshold else ""
    text += "h" if spec.rotated else ""
    return text if spec.scale_format == default_scale_format(spec.format, spec.granularity, role) else f"{text}@{spec.scale_format}"


def _proper(token: str) -> str:
    """nf4 and fp4 are written as their authors do; fp8 is e4m3 unless it says otherwise."""
    return {"nf4": "NF4", "fp4": "FP4", "fp8e4m3": "fp8"}.get(token, token)


def _parse_grammar(name: str) -> Scheme:
    text, at = name.lower(), 0
    found: dict[str, TensorSpec] = {}
    while at < len(text):
        if text[at] in " -_":
            at += 1
            continue
        letter = text[at]
        if letter not in ROLES and letter not in HALVES:
            raise _error(name, at, "expected W, A or C (or K and V)" if found else "expected a name, or a part that begins with W, A or C (or K and V)")
        if letter in found or (letter in HALVES and "c" in found) or (letter == "c" and found.keys() & set(HALVES)):
            raise _error(name, at, f"the {ROLES.get(letter, 'cache')} is given twice")
        found[letter], at = _part(text, at, name)
    if not found:
        raise _error(name, 0, "it is empty")
    bf16 = TensorSpec("bf16")
    keys = found.get("k", found.get("c", bf16))
    return Scheme(found.get("w", bf16), found.get("a", bf16), keys, found.get("v", bf16) if found.keys() & set(HALVES) else None)


def _part(text: str, at: int, name: str) -> tuple[TensorSpec, int]:
    """(spec, position after it) of the part that begins at text[at]."""
    role = ROLES.get(text[at], "cache")
    start = at
    match = _format_pattern().match(text, at + 1)
    if match is None:
        known = sorted({f.token for f in formats.formats().values() if not f.scale_only})
        raise _error(name, at + 1, f"no number format for the {role} here", remedy=f"formats: 16, 32, a number of bits from 2 to 8, {', '.join(known)}")
    spec = default_spec(formats.get(match[0]).token, role)
    at = match.end()
    changes: dict[str, object] = {}
    if match := _GRANULARITY.match(text, at):
        kind = match.lastgroup
        granularity = {"group": "group", "columns": "block", "tensor": "tensor"}.get(kind or "", "channel" if role == "weight" else "token")
        changes |= {"symmetric": True, "granularity": granularity, "size": int(match["group"] or match["rows"] or 0), "columns": int(match["columns"] or 0),
                    "scale_format": default_scale_format(spec.format, granularity, role)}
        at = match.end()
    if text[at : at + 1] == "s" and role != "weight":
        changes["dynamic"] = False
        at += 1
    if text[at : at + 1] in ("z", "y"):
        changes["symmetric"] = text[at] == "y"
        at += 1
    if role == "activation" and (match := _OUTLIERS.match(text, at)):
        changes["threshold"] = float(match[1])
        at = match.end()
    if role == "activation" and text[at : at + 1] == "h":
        changes["rotated"] = True
        at += 1
    if match := _SCALE.match(text, at):
        changes["scale_format"] = match[1]
        at = match.end()
    if at < len(text) and text[at] not in "wackv -_":
        raise _error(name, at, f"cannot read {name[at:]!r}")
    try:
        return replace(spec, **changes), at  # type: ignore[arg-type]
    except SchemeError as problem:
        raise _error(name, start, f"{name[start:at]!r} cannot be: {problem.what}") from None


def _error(name: str, at: int, what: str, remedy: str = "") -> SchemeError:
    near = difflib.get_close_matches(normalize(name), {normalize(n): n for n in known_names()}, n=3, cutoff=0.6)
    spelled = [n for n in known_names() if normalize(n) in near]
    hints = [remedy] if remedy else []
    if spelled:
        hints.append(f"did you mean {' or '.join(spelled)}?")
    return SchemeError(f"{what} (character {at + 1}: {name[:at]}>>>{name[at:]})", where=f"precision {name!r}", remedy="; ".join(hints))
