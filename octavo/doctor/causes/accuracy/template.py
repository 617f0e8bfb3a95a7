"""Chat template: the form in which the model expects a conversation; in another one it answers like a different model."""

from __future__ import annotations

import re

from ....errors import RequestError
from ....text import Text
from ...case import Case
from ...findings import Disorder, Finding
from ...tree import Answer, Cause, NotAskedError

TAKE = "take chat_template of the original's tokenizer_config.json"
BROKEN = Disorder("chat_template_broken", "error", "the chat template fails on an ordinary conversation", TAKE)
DROPS = Disorder("chat_template_drops_text", "error", "the chat template leaves out what the user said", TAKE)
DIFFERS = Disorder("chat_template_differs", "error", "the chat template puts a conversation into another form than the original's", TAKE)
LOST = Disorder("chat_template_lost", "error", "the original has a chat template, this one has none", TAKE)
SPLIT = Disorder("chat_marks_split", "error", "marks of the chat template are no tokens of their own: the model sees letters where a turn should begin",
                 "add them to added_tokens of tokenizer.json as the original has them, as special tokens")
HOLD_IT = ("tokenizer_config.json", "chat_template.jinja")  # files that may hold it
CONVERSATION = ({"role": "user", "content": "Which river is longest?"}, {"role": "assistant", "content": "The Nile, by most counts."},
                {"role": "user", "content": "And the second?"})
MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>")


def look(case: Case) -> Answer:
    text = case.loaded.text
    theirs = case.original.text if case.complaint.against is not None else None
    if not text.has_chat_template:
        if theirs is not None and theirs.has_chat_template:
            return Answer("there is none, the original has one",
                          (LOST("tokenizer_config.json", "chat requests are refused, or get a plain prompt", case.take(*HOLD_IT)),))
        raise NotAskedError("the model has no chat template (base models have none)")
    try:
        written = text.chat(CONVERSATION)
    except RequestError as error:
        return Answer("no", (BROKEN("tokenizer_config.json: chat_template", error.what, case.take(*HOLD_IT)),))
    found: list[Finding] = []
    if dropped := [turn["content"] for turn in CONVERSATION if turn["role"] == "user" and turn["content"] not in written]:
        found.append(DROPS("tokenizer_config.json: chat_template", f"{dropped[0]!r} is not in the prompt {written[:120]!r}",
                           case.take(*HOLD_IT)))
    if split := sorted({mark for mark in MARK.findall(written) if len(text.encode_chat(mark)) > 1}):
        found.append(SPLIT("tokenizer.json", f"{split[0]!r} becomes {len(text.encode_chat(split[0]))} tokens" + (f", as do {split[1:]}" if split[1:] else ""),
                           case.take("tokenizer.json")))
    if theirs is not None and theirs.has_chat_template and not found and (other := _of(theirs)) != written:
        place = next((i for i, (a, b) in enumerate(zip(written, other, strict=False)) if a != b), min(len(written), len(other)))
        found.append(DIFFERS("tokenizer_config.json: chat_template", f"here {written[place:place + 60]!r}, the original's {other[place:place + 60]!r}",
                             case.take(*HOLD_IT)))
    return Answer("no" if found else f"a conversation of three turns becomes {len(text.encode_chat(written))} tokens", tuple(found))


def _of(text: Text) -> str:
    try:
        return text.chat(CONVERSATION)
    except RequestError as error:
        raise NotAskedError(f"the original's template fails: {error.what}") from None


CAUSE = Cause(20, "does the chat template put a conversation into the form that the model knows?", look, (BROKEN, DROPS, SPLIT, DIFFERS, LOST))
