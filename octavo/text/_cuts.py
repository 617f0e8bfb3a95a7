"""How byte-level tokenizers cut a text into words, as Python expressions for ASCII text.

The expressions of tokenizer.json use Unicode classes that Python's `re` lacks; restricted to ASCII they are a few ranges of letters.
Source: https://huggingface.co/docs/tokenizers/api/pre-tokenizers, and GPT-2's own expression (github.com/openai/gpt-2, src/encoder.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The ASCII members of Unicode's categories, as they stand inside brackets
_ASCII = {
    "L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "Lt": "", "Lm": "", "Lo": "", "M": "", "N": "0-9", "Nd": "0-9", "Han": "",
    "P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<=>\^`|~",
}


def rules(pre_tokenizer: dict[str, Any] | None) -> list[str] | None:
    """Expressions in order, each applied to the pieces of the one before; None for a pre-tokenizer that is not byte level or not known here."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    found: list[str] = []
    for step in steps:
        kind = step["type"]
        if kind == "Digits":
            found.append("[0-9]" if step["individual_digits"] else "[0-9]+")
        elif kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            expression = for_ascii(step["pattern"]["Regex"])
            if expression is None:
                return None
            found.append(expression)
        elif kind == "ByteLevel" and not step["add_prefix_space"]:
            found += [str(for_ascii(GPT2))] if step["use_regex"] else []
        else:
            return None
    return found if steps[-1]["type"] == "ByteLevel" else None


def for_ascii(expression: str) -> str | None:
    """The same expression where the text is ASCII; None where Python would read it differently."""
    out: list[str] = []
    inside = False
    for part in re.findall(r"\\[pP]\{\w+\}|\\.|.", expression, re.DOTALL):
        if part[:2] == r"\p":
            members = _ASCII.get(part[3:-1])
            if members is None:
                return None
            out.append(members if inside else f"[{members}]" if members else "(?!)")
        elif part[0] == "\\" and part[1] not in "srntfvSdDwW" and part[1].isalnum():
            return None
        elif part == "[":
            if inside:
                return None  # sets of sets
            inside = True
            out.append(part)
        else:
            inside = inside and part != "]"
            out.append(part)
    text = re.sub(r"(?<!\\)\[\]", "(?!)", "".join(out))  # a class that has lost all its members
    try:
        re.compile(text, re.ASCII)
    except re.error:
        return None
    return text


def cut(text: str, expressions: Sequence[re.Pattern[str]]) -> Iterator[str]:
    """The words of a text: matches of each expression and what lies between them, none empty."""
    if not expressions:
        yield text
        return
    at = 0
    for match in expressions[0].finditer(text):
        begin, end = match.span()
        if begin == end:
            continue
        if begin > at:
            yield from cut(text[at:begin], expressions[1:])
        yield from cut(text[begin:end], expressions[1:])
        at = end
    if at < len(text):
        yield from cut(text[at:], expressions[1:])
