"""What is asked: prompts out of a file, or made of random words to a length.

A .jsonl file has one object a line, a .json file a list of them. What an object is, its keys say:

| keys                                | asked                                                           | found in                    |
|-------------------------------------|-----------------------------------------------------------------|-----------------------------|
| messages                            | those messages, without answers at the end                      | OpenAI's API                |
| conversations (from, value)         | the conversation up to the last thing that a person said        | ShareGPT, FastChat          |
| turns                               | the first turn                                                  | MT-Bench, Vicuna            |
| schema, question                    | the SQL that answers the question                               | Spider and other text-to-SQL|
| prompt, text, question, instruction | that text; with `input` after an instruction                    | most others                 |

`max_tokens` or `output_tokens` of an object, where it has one, is how long its answer may be.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import UsageError

Message = dict[str, str]

# Frequent words that most vocabularies hold as one token each.
_LIST = """time year people way day man thing woman life child world school state family student group country problem hand part place case week company
system program question work government number night point home water room mother area money story fact month lot right study book eye job word business
issue side kind head house service friend father power hour game line end member law car city community name president team minute idea kid body
information back parent face others level office door health person art war history party result change morning reason research girl guy moment air
teacher force education foot boy age policy music market sense nation plan college interest death experience effect use class control field
development role effort rate heart drug show leader light voice wife police mind price report decision son view relationship town road arm difference
value building action season society tax director position player record paper space ground form event official matter center couple site project"""
WORDS = tuple(_LIST.split())


@dataclass(frozen=True)
class Prompt:
    """One request's question, and the tokens its answer may have at most."""

    messages: tuple[tuple[str, str], ...]
    """(role, text) each."""
    max_tokens: int

    @property
    def text(self) -> str:
        """The texts one after the other, for endpoints that know no messages."""
        return "\n\n".join(text for _, text in self.messages)


@dataclass(frozen=True)
class Prompts:
    """Prompts in the order in which they are asked; after the last one the first one comes again."""

    name: str
    items: tuple[Prompt, ...]
    ignore_end: bool = False
    """Ask for answers of exactly max_tokens tokens."""

    def __getitem__(self, number: int) -> Prompt:
        return self.items[number % len(self.items)]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def sha256(self) -> str:
        """Of all prompts, wherever they begin."""
        return hashlib.sha256(json.dumps(sorted((p.messages, p.max_tokens) for p in self.items)).encode()).hexdigest()


def read_prompts(path: Path, max_tokens: int, *, seed: int | None = None, ignore_end: bool = False) -> Prompts:
    """The prompts of a file, shuffled by `seed` (None: as they come). Raises UsageError with the line that is at fault."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {getattr(error, 'strerror', None) or 'no UTF-8 text'}", where=str(path)) from None
    items = [_prompt(one, where, max_tokens) for where, one in _objects(content, path)]
    if not items:
        raise UsageError("holds no prompts", where=str(path), remedy="one JSON object a line, such as {\"prompt\": \"...\"}")
    if seed is not None:
        random.Random(seed).shuffle(items)
    return Prompts(path.name, tuple(items), ignore_end)


def random_words(words: int, max_tokens: int, count: int, seed: int = 0) -> Prompts:
    """`count` prompts of `words` random words each, no two alike, answered with exactly `max_tokens` tokens.

    How many tokens a word is, the model's vocabulary decides: see `traffic.lengths`.
    """
    dice = random.Random(seed)
    items = tuple(Prompt((("user", " ".join(dice.choices(WORDS, k=max(words, 1)))),), max_tokens) for _ in range(count))
    return Prompts(f"random words, {max_tokens} tokens out", items, ignore_end=True)


def after(prompts: Prompts, count: int) -> Prompts:
    """The same prompts, beginning after the first `count`: what a server has answered already lies in its prefix cache."""
    start = count % len(prompts.items)
    return replace(prompts, items=prompts.items[start:] + prompts.items[:start])


def _objects(content: str, path: Path) -> list[tuple[str, Any]]:
    """(where, object) of all that the file holds."""
    try:
        if path.suffix == ".json":
            found = json.loads(content)
            return [(f"{path}, object {i}", one) for i, one in enumerate(found if isinstance(found, list) else [found], 1)]
        return [(f"{path}, line {i}", json.loads(line)) for i, line in enumerate(content.splitlines(), 1) if line.strip()]
    except (ValueError, RecursionError) as error:
        number = sum(1 for _ in _good_lines(content)) + 1 if path.suffix != ".json" else 1
        raise UsageError(f"is no JSON: {error}", where=f"{path}, line {number}") from None


def _good_lines(content: str) -> Sequence[str]:
    """The lines before the first that is no JSON."""
    good = []
    for line in content.splitlines():
        try:
            if line.strip():
                json.loads(line)
        except (ValueError, RecursionError):
            break
        good.append(line)
    return good


def _prompt(one: Any, where: str, max_tokens: int) -> Prompt:
    if not isinstance(one, dict):
        raise UsageError("is no JSON object", where=where, remedy='such as {"prompt": "..."}')
    asked = one.get("max_tokens", one.get("output_tokens", max_tokens))
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise UsageError(f"max_tokens must be a whole number above 0, not {asked!r}", where=where)
    messages = _messages(one, where)
    if not messages:
        raise UsageError(f"no prompt under the keys {', '.join(map(str, one)) or 'of an empty object'}", where=where,
                         remedy="known: messages, conversations, turns, schema with question, prompt, text, question, instruction")
    return Prompt(messages, asked)


def _messages(one: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    if "messages" in one or "conversations" in one:
        talk: Any = one.get("messages", one.get("conversations"))
        try:
            said = [({"human": "user", "gpt": "assistant"}.get(role := m.get("role", m.get("from", "")), role), m.get("content", m.get("value"))) for m in talk]
        except (TypeError, AttributeError):
            raise UsageError("messages must be a list of objects with role and content", where=where) from None
        while said and said[-1][0] == "assistant":
            said.pop()
        if not all(isinstance(role, str) and isinstance(text, str) for role, text in said):
            raise UsageError("a message without a role or without text", where=where)
        return tuple(said)
    text = None
    if isinstance(one.get("turns"), list) and one["turns"]:
        text = one["turns"][0]
    elif isinstance(one.get("schema"), str) and isinstance(one.get("question"), str):
        text = f"{one['schema']}\n\nThe tables above are those of a database. Answer with one SQL query and nothing else.\n\nQuestion: {one['question']}"
    else:
        text = next((one[key] for key in ("prompt", "text", "question", "instruction") if isinstance(one.get(key), str)), None)
        if text is not None and isinstance(one.get("input"), str) and one["input"]:
            text = f"{text}\n\n{one['input']}"
    return (("user", text),) if isinstance(text, str) and text else ()
