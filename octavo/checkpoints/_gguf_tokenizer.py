"""A `tokenizers.Tokenizer` out of GGUF metadata.

Three models of vocabulary: "gpt2" (byte-level BPE with merges; how text is cut before merging goes by the name in tokenizer.ggml.pre),
"llama" (SentencePiece BPE: a pair merges the sooner the higher the score of what it makes), "bert" (WordPiece).
Sources: ggml/docs/gguf.md for the keys; the tokenizer.json of the models named in _PRE for how each cuts its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CheckpointError
from ._json import shown

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

CONTROL, USER_DEFINED = 3, 4
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space so
# Tokens that end a turn in chat formats; files often name only the end of text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")
SPECIALS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding", "sep_token": "seperator",  # GGUF's spelling
            "cls_token": "cls", "mask_token": "mask"}

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_GAPS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"


def _words(digits: str) -> str:
    return rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_GAPS}"


# How text is cut, in order: regular expressions, "digits" (each alone), "gpt2" (byte-level with GPT-2's own expression). Named by family.
_CUTS: dict[str, tuple[str, ...]] = {
    "gpt2": ("gpt2",),
    "digits": ("digits", "gpt2"),
    "llama3": (_words(r"\p{N}{1,3}"),),
    "qwen2": (_words(r"\p{N}"),),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", "digits"),
    "deepseek3": (r"\p{N}{1,3}", _CJK, rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*{_GAPS}"),
    "tekken": (rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*|\p{{N}}"
               rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_GAPS}",),
}
_PRE = {
    "gpt-2": "gpt2", "default": "gpt2", "phi-2": "gpt2", "mpt": "gpt2", "jina-v2-code": "gpt2", "roberta-bpe": "gpt2",
    "smollm": "digits", "starcoder": "digits", "refact": "digits", "command-r": "digits", "codeshell": "digits",
    "llama-bpe": "llama3", "llama3": "llama3", "llama-v3": "llama3", "smaug-bpe": "llama3", "falcon3": "llama3", "dbrx": "llama3",
    "qwen2": "qwen2", "deepseek-r1-qwen": "qwen2", "stablelm2": "qwen2", "hunyuan": "qwen2",
    "deepseek-coder": "deepseek-coder", "deepseek-v3": "deepseek3", "tekken": "tekken",
}
_WHOLE_WORDS_FIRST = {"llama3", "tekken"}  # a word that is in the vocabulary is taken before any merge
_COMPOSED = {"qwen2"}  # text is brought into Unicode's NFC first


def tokenizer_of(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """Raises CheckpointError for metadata that gives no tokenizer, naming what is missing or not known."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    model = metadata.get("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece}.get(str(model))
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens) or build is None:
        raise CheckpointError(f"holds no tokenizer that can be read (tokenizer.ggml.model is {shown(model)})", where=str(path),
                              remedy="known: gpt2, llama, bert")
    try:
        tokenizer = build(metadata, tokens, path)
        _add_specials(tokenizer, metadata, tokens)
        _surround(tokenizer, metadata, tokens)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"holds a tokenizer that cannot be built: {shown(str(error)[:100])}", where=str(path), remedy="fetch it again") from None
    return tokenizer


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json: the special tokens by name and the chat template (or several, by name)."""
    tokens = metadata.get("tokenizer.ggml.tokens") or []
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    for name, key in SPECIALS.items():
        token = _special_id(metadata, key)
        if token is not None:
            config[name] = tokens[token]
    template = metadata.get("tokenizer.chat_template")
    named = {key.rsplit(".", 1)[1]: text for key, text in metadata.items() if key.startswith("tokenizer.chat_template.") and isinstance(text, str)}
    if isinstance(template, str):
        config["chat_template"] = {"default": template, **named} if named else template
    return config


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """Ids that end an answer: end of text and of turn as the metadata names them, and control tokens known to end a turn."""
    named = [_special_id(metadata, key) for key in ("eos", "eot", "eom")]
    tokens, kinds = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        ends = set(TURN_ENDS)
        named += [int(i) for i in np.flatnonzero(kinds == CONTROL) if isinstance(tokens[i], str) and tokens[i] in ends]
    return list(dict.fromkeys(i for i in named if i is not None))


def _special_id(metadata: Mapping[str, Any], key: str) -> int | None:
    token, tokens = metadata.get(f"tokenizer.ggml.{key}_token_id"), metadata.get("tokenizer.ggml.tokens")
    return token if type(token) is int and isinstance(tokens, list) and 0 <= token < len(tokens) else None


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Text -> id; of tokens with the same text the first."""
    found: dict[str, int] = {}
    for i, token in enumerate(tokens):
        found.setdefault(token, i)
    return found


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    family = _PRE.get(pre) if isinstance(pre, str) else None
    if family is None:
        raise CheckpointError(f"cuts its text by the rule {shown(pre)} (tokenizer.ggml.pre), which is not known", where=str(path),
                              remedy=f"known: {', '.join(sorted(_PRE))}; or take the model's safetensors folder, which brings a tokenizer.json")
    merges = []
    for merge in metadata.get("tokenizer.ggml.merges", ()):
        cut = merge.find(" ", 1)
        merges.append((merge[:cut], merge[cut + 1 :]))
    tokenizer = Tokenizer(models.BPE(_vocabulary(tokens), merges, ignore_merges=family in _WHOLE_WORDS_FIRST))
    tokenizer.pre_tokenizer = cutter(family, bool(metadata.get("tokenizer.ggml.add_space_prefix", False)))
    if family in _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def cut_rules() -> tuple[str, ...]:
    """The families of rules by which text is cut before merging."""
    return tuple(_CUTS)


def cutter(family: str, prefix: bool) -> Any:
    """The pre-tokenizer of a family; prefix: a space goes before a text."""
    from tokenizers import Regex, pre_tokenizers

    cuts: list[Any] = []
    for cut_by in _CUTS[family]:
        if cut_by == "digits":
            cuts.append(pre_tokenizers.Digits(individual_digits=True))
        elif cut_by != "gpt2":
            cuts.append(pre_tokenizers.Split(Regex(cut_by), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex="gpt2" in _CUTS[family]))
    return pre_tokenizers.Sequence(cuts)


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise CheckpointError("has no score for each token (tokenizer.ggml.scores)", where=str(path), remedy="fetch it again")
    vocabulary = _vocabulary(tokens)
    unknown = _special_id(metadata, "unknown")
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges_by_score(tokens, vocabulary, scores, metadata.get("tokenizer.ggml.token_type")),
                                     unk_token=None if unknown is None else tokens[unknown], fuse_unk=True, byte_fallback=True))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    to_spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), to_spaces]) if prefix else to_spaces
    decoding: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoding, decoders.Strip(" ", 1, 0)] if prefix else decoding)
    return tokenizer


def _merges_by_score(tokens: list[str], vocabulary: dict[str, int], scores: np.ndarray, kinds: Any) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first: SentencePiece's rule as a list of merges."""
    plain = kinds != CONTROL if isinstance(kinds, np.ndarray) and len(kinds) == len(tokens) else np.ones(len(tokens), bool)
    merges: list[tuple[str, str]] = []
    for i in np.lexsort((np.arange(len(tokens)), -scores)):
        token = tokens[i]
        if len(token) < 2 or not plain[i] or vocabulary[token] != i:
            continue
        splits = []
        for cut in range(1, len(token)):
            left = vocabulary.get(token[:cut])
            if left is not None and (right := vocabulary.get(token[cut:])) is not None:
                splits.append((left, right))
        if len(splits) > 1:
            splits.sort()
        merges += [(tokens[left], tokens[right]) for left, right in splits]
    return merges


def _wordpiece(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> Tokenizer:
    """GGUF marks the beginning of a word with SentencePiece's space; WordPiece marks the rest of it with ##."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    kinds = metadata.get("tokenizer.ggml.token_type")
    special = set(np.flatnonzero(kinds == CONTROL).tolist()) if isinstance(kinds, np.ndarray) else set()
    pieces = [t if i in special or (t.startswith("[") and t.endswith("]")) else t[1:] if t.startswith(SPACE) else "##" + t
              for i, t in enumerate(tokens)]
    unknown = _special_id(metadata, "unknown")
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(pieces), unk_token="[UNK]" if unknown is None else tokens[unknown]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _add_specials(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Control tokens (special: left out of decoded text) and user-defined ones (found in text before anything else)."""
    from tokenizers import AddedToken

    kinds = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        kinds = np.ones(len(tokens), np.int32)
    control = {int(i) for i in np.flatnonzero(kinds == CONTROL)} | {i for key in ("bos", "eos") if (i := _special_id(metadata, key)) is not None}
    known: list[AddedToken] = []
    for i in sorted(control | {int(i) for i in np.flatnonzero(kinds == USER_DEFINED)}):
        if tokens[i]:
            known.append(AddedToken(tokens[i], special=i in control, normalized=False))
    tokenizer.add_tokens(known)


def _surround(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """The tokens before and after a text. Where a file does not say, SentencePiece and Llama 3 begin with one and BERT has both."""
    from tokenizers import processors

    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    bert = model == "bert"
    begins = metadata.get("tokenizer.ggml.add_bos_token", bert or model == "llama" or _PRE.get(str(pre)) in _WHOLE_WORDS_FIRST)
    ends = metadata.get("tokenizer.ggml.add_eos_token", bert)
    first = _special_id(metadata, "cls" if bert else "bos") if begins else None
    last = _special_id(metadata, "seperator" if bert else "eos") if ends else None
    around = [i for i in (first, last) if i is not None]
    if around:
        pattern = [*([tokens[first]] if first is not None else []), "$A", *([tokens[last]] if last is not None else [])]
        tokenizer.post_processor = processors.TemplateProcessing(single=pattern, special_tokens=[(tokens[i], i) for i in dict.fromkeys(around)])
