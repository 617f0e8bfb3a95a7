"""GGUF's tokenizer metadata out of a `tokenizers.Tokenizer`: the inverse of _gguf_tokenizer.py.

How a byte-level tokenizer cuts its text is recognised by what it does: a text that tells all known rules apart is cut, and compared.
Source: ggml/docs/gguf.md for the keys; llama.cpp's src/llama-vocab.cpp for what it makes of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ._gguf_tokenizer import CONTROL, SPECIALS, USER_DEFINED, cut_rules, cutter

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
NAMES = {"gpt2": "gpt-2", "digits": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "deepseek-coder": "deepseek-coder", "deepseek3": "deepseek-v3",
         "tekken": "tekken"}  # rule of cutting -> the name that llama.cpp knows it by
PROBE = ("Hello WORLD, it's We'LL they'D! 1 12 123 1234 12345.678  two   spaces\t\ttab\n\n\nnew \n line \r\n camelCase HTTPServer x86_64 "
         "\u4f60\u597d\u4e16\u754c123 \u3053\u3093\u306b\u3061\u306f caf\u00e9 na\u00efve \u0416\u0443\u043a \u0661\u0662\u0663 \ud55c\uad6d\uc5b4 (a+b)*c==d; "
         "/path/to//file <tag attr=\"v\"> #!$%&@ ... --- \U0001f600\U0001f680 a\u0301e\u0300 \u01c5x   ")


def tokenizer_metadata(files: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The tokenizer.* keys. files: what Checkpoint.tokenizer_files gave; size: rows of the embedding, which llama.cpp wants as many tokens as.

    Raises UsageError for a tokenizer that GGUF cannot say.
    """
    tokenizer: Tokenizer | None = files.get("tokenizer")
    if tokenizer is None:
        raise UsageError("the model has no tokenizer that can be read", remedy="put its tokenizer.json beside the weights: a GGUF file has to hold it")
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    if model.get("type") != "BPE":
        raise UsageError(f"a tokenizer of type {model.get('type')} is not written as GGUF", remedy="known: BPE, byte-level or as SentencePiece has it")
    tokens, kinds = _tokens(tokenizer, described, size)
    pieces = bool(model.get("byte_fallback"))
    found: dict[str, Any] = {"tokenizer.ggml.model": "llama" if pieces else "gpt2"}
    if pieces:
        found["tokenizer.ggml.pre"] = "default"
        found["tokenizer.ggml.tokens"] = tokens
        found["tokenizer.ggml.scores"] = _scores(tokens, kinds, model)
        found["tokenizer.ggml.add_space_prefix"] = _prefixed(described)
    else:
        found["tokenizer.ggml.pre"] = _rule(tokenizer, described)
        found["tokenizer.ggml.tokens"] = tokens
        found["tokenizer.ggml.merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        if _prefixed(described):
            found["tokenizer.ggml.add_space_prefix"] = True
    found["tokenizer.ggml.token_type"] = kinds
    config, generation = files.get("config") or {}, files.get("generation") or {}
    found.update(_special_ids(tokenizer, config, generation))
    plain, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a", add_special_tokens=True).ids
    found["tokenizer.ggml.add_bos_token"] = full[:1] != plain[:1]
    found["tokenizer.ggml.add_eos_token"] = full[-1:] != plain[-1:]
    found.update(_templates(config.get("chat_template")))
    return found


def _tokens(tokenizer: Tokenizer, described: Mapping[str, Any], size: int) -> tuple[list[str], np.ndarray]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    most = max(vocabulary.values(), default=-1) + 1
    if most > size:
        raise UsageError(f"the tokenizer has {most} tokens, the embedding {size} rows", remedy="tokenizer and weights are not of the same model")
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = np.full(size, UNUSED, np.int32)
    for text, i in vocabulary.items():
        tokens[i], kinds[i] = text, NORMAL
        if described["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[i] = BYTE
    unknown = described["model"].get("unk_token")
    if unknown is not None and unknown in vocabulary:
        kinds[vocabulary[unknown]] = UNKNOWN
    for added in described.get("added_tokens") or ():
        if kinds[added["id"]] != UNKNOWN:
            kinds[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    return tokens, kinds


def _scores(tokens: list[str], kinds: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """The earlier a token is merged, the higher: minus the rank of the first merge that makes it."""
    scores = np.full(len(tokens), -1e6, np.float32)
    made: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        made.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    for i, text in enumerate(tokens):
        if text in made:
            scores[i] = -float(made[text])
    scores[kinds != NORMAL] = 0
    return scores


def _parts(described: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    whole = described.get(key)
    return [] if whole is None else list(whole.get("normalizers") or whole.get("pretokenizers") or [whole])


def _prefixed(described: Mapping[str, Any]) -> bool:
    """Whether a space goes before a text."""
    for part in [*_parts(described, "normalizer"), *_parts(described, "pre_tokenizer")]:
        if part["type"] == "Prepend" or (part["type"] == "ByteLevel" and part.get("add_prefix_space")):
            return True
        if part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            return True
    return False


def _rule(tokenizer: Tokenizer, described: Mapping[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer cuts text."""
    if tokenizer.pre_tokenizer is None:
        raise UsageError("the tokenizer cuts no text before it merges, which llama.cpp has no name for", remedy="this model cannot be written as GGUF")
    cuts = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(PROBE)]
    for family in cut_rules():
        if [piece for piece, _ in cutter(family, _prefixed(described)).pre_tokenize_str(PROBE)] == cuts:
            return NAMES[family]
    raise UsageError("the tokenizer cuts its text by a rule that is none of those which are written", where="pre_tokenizer",
                     remedy=f"known: {', '.join(NAMES.values())}; llama.cpp's own converter may know more")


def _special_ids(tokenizer: Tokenizer, config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, int]:
    found = {}
    for name, key in SPECIALS.items():
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (i := tokenizer.token_to_id(text)) is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = i
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else [i for i in ends or () if isinstance(i, int)]
    if ends and "tokenizer.ggml.eos_token_id" not in found:
        found["tokenizer.ggml.eos_token_id"] = ends[0]
    others = [i for i in ends if i != found.get("tokenizer.ggml.eos_token_id")]
    if others:
        found["tokenizer.ggml.eot_token_id"] = others[0]
    if isinstance(bos := generation.get("bos_token_id"), int):
        found.setdefault("tokenizer.ggml.bos_token_id", bos)
    return found


def _templates(template: Any) -> dict[str, Any]:
    if isinstance(template, str):
        return {"tokenizer.chat_template": template}
    named: dict[str, Any] = {}
    if isinstance(template, dict):
        named = template
    elif isinstance(template, list):
        named = {t["name"]: t["template"] for t in template if isinstance(t, dict) and "name" in t}
    found: dict[str, Any] = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default" and isinstance(text, str)}
    if found:
        found = {"tokenizer.chat_templates": [key.rsplit(".", 1)[1] for key in found], **found}
    return {"tokenizer.chat_template": named["default"], **found} if isinstance(named.get("default"), str) else found
