"""Tokenizer and chat template beside the weights: do they fit the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...checkpoints.survey import read_object, read_tokenizer_settings
from ...errors import OctavoError
from ..findings import Disorder, Finding
from ..patient import Patient
from . import Check

ABSENT = Disorder("tokenizer_missing", "warning", "there is no tokenizer.json: the model cannot be asked anything", "fetch the model again, with its tokenizer")
BROKEN = Disorder("tokenizer_broken", "error", "the tokenizer cannot be read", "fetch tokenizer.json again")
BEYOND = Disorder("vocabulary_mismatch", "error", "the tokenizer has tokens that the embedding has no row for", "take the tokenizer of this very model")
TEMPLATE = Disorder("chat_template_missing", "info", "there is no chat template: chat requests have no form to be put in (base models have none)",
                    "take the template of the instruction-tuned model, if this is one")
IDS = Disorder("special_token_range", "error", "a special token of the config is no token of the vocabulary",
               "correct the id in config.json or generation_config.json")


def check(patient: Patient) -> Iterator[Finding]:
    rows = _rows(patient)
    try:
        settings, largest = _tokenizer(patient)
    except OctavoError as error:
        missing = patient.path.is_dir() and not (patient.path / "tokenizer.json").is_file()
        yield (ABSENT if missing else BROKEN)(error.where, error.what)
        return
    if largest is not None and rows is not None and largest >= rows:
        yield BEYOND("tokenizer.json" if patient.path.is_dir() else "tokenizer.ggml.tokens", f"its largest id is {largest}, the embedding has {rows} rows")
    if settings is not None and not settings.get("chat_template"):
        yield TEMPLATE("tokenizer_config.json" if patient.path.is_dir() else "tokenizer.chat_template", "neither a field nor a file of its own")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = patient.text_config.get(key)
        for one in value if isinstance(value, list) else [value]:
            if type(one) is int and rows is not None and one >= rows:
                yield IDS(f"config.json: {key}", f"{one}, the embedding has {rows} rows")


def _rows(patient: Patient) -> int | None:
    """Rows of the embedding: of the table itself, or as the config says."""
    name = patient.held.get("model.embed_tokens.weight")
    if name in patient.survey.tensors and patient.survey.tensors[name].shape:
        return patient.survey.tensors[name].shape[0]
    info = patient.checkpoint.tensors.get("model.embed_tokens.weight") if patient.checkpoint is not None else None
    return info.shape[0] if info is not None and info.shape else patient.number("vocab_size")


def _tokenizer(patient: Patient) -> tuple[dict[str, Any] | None, int | None]:
    """(tokenizer settings, largest id); what is not there is None. Raises OctavoError."""
    if not patient.path.is_dir():
        if patient.checkpoint is None:
            return None, None
        files = patient.checkpoint.tokenizer_files()
        return files["config"], max(files["tokenizer"].get_vocab(with_added_tokens=True).values(), default=None)
    described = read_object(patient.path / "tokenizer.json")
    model = described.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary))) if isinstance(vocabulary, list) else []
    ids += [token.get("id") for token in described.get("added_tokens") or [] if isinstance(token, dict)]
    return read_tokenizer_settings(patient.path)["config"], max((i for i in ids if type(i) is int), default=None)


CHECK = Check(check, (ABSENT, BROKEN, BEYOND, TEMPLATE, IDS))
