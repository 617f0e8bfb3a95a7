"""Tokenizer: another one than the model was trained with gives it words that it does not know."""

from __future__ import annotations

from ....text import Text
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

LOSES = Disorder("tokenizer_loses_text", "warning", "text does not come back from the tokenizer as it went in",
                 "take tokenizer.json of the original; a character vocabulary that lacks some characters does this, too")
DIFFERS = Disorder("tokenizer_differs", "error", "the tokenizer cuts text otherwise than the original's: the model reads words that were not written",
                   "take tokenizer.json and tokenizer_config.json of the original")
BEYOND = Disorder("token_beyond_vocabulary", "error", "the tokenizer gives tokens that the model has no row for", "take the tokenizer of this very model")
UNENDING = Disorder("no_end_token", "warning", "no token ends an answer: answers run on until they are cut off, and say nothing of use at the end",
                    "name eos_token_id in generation_config.json, as the original does")
SAMPLES = ("The quick brown fox jumps over the lazy dog. 12 + 30 = 42!", "def f(x):\n    return x  # twice\n", "Ça va? Die Straße, 東京 and 🙂.")


def look(case: Case) -> Answer:
    text, vocabulary = case.loaded.text, case.loaded.vocab_size
    changed = [sample for sample in SAMPLES if text.decode(text.encode(sample, special=False)).strip() != sample.strip()]
    largest = max(token for sample in SAMPLES for token in text.encode(sample))
    found = []
    if largest >= vocabulary:
        found.append(BEYOND("tokenizer.json", f"token {largest}, the model has {vocabulary}"))
    if not case.loaded.eos_token_ids:
        found.append(UNENDING("generation_config.json", "neither config, generation config nor tokenizer names one"))
    elsewhere = ""
    if case.complaint.against is not None:
        theirs = case.original.text
        other = [sample for sample in SAMPLES if theirs.encode(sample) != text.encode(sample)]
        elsewhere = f"; {len(other)} of them are cut otherwise than by the original's"
        if other:
            evidence = f"{other[0]!r} becomes {_brief(text, other[0])}, the original's {_brief(theirs, other[0])}"
            found.append(DIFFERS("tokenizer.json", evidence, case.take("tokenizer.json", "tokenizer_config.json")))
    if changed and all(one.disorder is not DIFFERS for one in found):
        found.append(LOSES("tokenizer.json", f"{changed[0]!r} comes back as {text.decode(text.encode(changed[0], special=False))!r}"))
    return Answer(f"{len(SAMPLES) - len(changed)} of {len(SAMPLES)} texts come back as they went in{elsewhere}", tuple(found))


def _brief(text: Text, sample: str) -> str:
    ids = text.encode(sample)
    return f"{len(ids)} tokens, {ids[:6]} ..."


CAUSE = Cause(10, "does the tokenizer fit the model?", look, (DIFFERS, BEYOND, LOSES, UNENDING))
