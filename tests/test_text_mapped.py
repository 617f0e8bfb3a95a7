"""The mapped tokenizer says what `tokenizers` says, for every way to cut that GGUF knows, and builds the tokenizer for what it does not know."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from octavo.checkpoints._gguf_tokenizer import _CUTS
from octavo.text import Text
from octavo.text._cuts import for_ascii
from octavo.text._tables import LONGEST_TEXT, Tables, make
from octavo.text.mapped import FILE, FIRST_TEXTS, MappedTokenizer

CORPUS = [Path(__file__).with_name(name).read_text() for name in ("test_text.py", "test_loading.py", "conftest.py")]
PARTS = [" ", "  ", "\n", "\r\n", "\t", "a", "The", "'s", "'LL", "12", "3456", "_", "()", "...", "<s>", "<|x|>", "<|x", "</s>",
         "\x00", "\x1f", "\x7f", "word", "-"]


def trained(family: str, *, whole_words: bool = False, around: bool = False, late: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole_words))
    cuts: list[Any] = []
    for rule in _CUTS[family]:
        if rule == "digits":
            cuts.append(pre_tokenizers.Digits(individual_digits=True))
        elif rule != "gpt2":
            cuts.append(pre_tokenizers.Split(Regex(rule), "isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="gpt2" in _CUTS[family]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<|x|>", normalized=late), AddedToken("<|x|><|x|>", special=True, normalized=False)])
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def texts(count: int) -> list[str]:
    draw = random.Random(3)
    corpus = "".join(CORPUS).encode("ascii", "ignore").decode()
    found = ["".join(draw.choice(PARTS) for _ in range(draw.randrange(12))) for _ in range(count)]
    for _ in range(count):
        at = draw.randrange(len(corpus))
        found.append(corpus[at : at + draw.randrange(200)])
        found.append("".join(chr(draw.randrange(128)) for _ in range(draw.randrange(40))))
    return found


@pytest.mark.parametrize("family", sorted(_CUTS))
@pytest.mark.parametrize("variant", [{}, {"whole_words": True, "around": True}, {"late": True}])
def test_the_same_ids(family: str, variant: dict[str, bool]) -> None:
    tokenizer = trained(family, **variant)
    data = make(tokenizer)
    assert data is not None
    tables = Tables(data)
    for text in texts(150):
        special = len(text) % 2 == 0
        found = tables.encode(text, special)
        assert found == tokenizer.encode(text, add_special_tokens=special).ids or (found is None and "-" * 60 in text), text
    size = tokenizer.get_vocab_size()
    assert [tables.token(i) for i in range(-1, size + 1)] == [None, *(tokenizer.id_to_token(i) for i in range(size)), None]
    assert all(tables.id(tokenizer.id_to_token(i)) == i for i in range(size)) and tables.id("no such token") is None


def test_what_is_not_byte_level_has_no_tables(shared_data: Path) -> None:
    assert make(Tokenizer.from_file(str(shared_data / "models" / "stories260k-hf" / "tokenizer.json"))) is None
    lower = trained("gpt2")
    lower.normalizer = normalizers.Lowercase()
    stripped = trained("gpt2")
    stripped.add_tokens([AddedToken("<y>", lstrip=True)])
    prefixed = trained("gpt2")
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    short = trained("gpt2")
    short.enable_truncation(8)
    assert [make(t) for t in (lower, stripped, prefixed, short)] == [None] * 4


def test_expressions_for_ascii() -> None:
    assert for_ascii(r"\p{L}+|[^\p{N}\p{P}]") == r"[A-Za-z]+|[^0-9!-#%-*,-/:;?@\[-\]_{}]"
    assert for_ascii(r"\p{Thai}") is None and for_ascii(r"[a[b]]") is None and for_ascii(r"\X") is None and for_ascii("(") is None


def test_the_tokenizer_is_built_when_it_is_needed_and_not_before(tmp_path: Path) -> None:
    tokenizer = trained("llama3", around=True)
    MappedTokenizer.write(tmp_path / FILE, tokenizer)
    built: list[int] = []

    def build() -> Tokenizer:
        built.append(1)
        return tokenizer

    def opened() -> Text:
        mapped = MappedTokenizer.open(tmp_path / FILE, build)
        assert mapped is not None
        return Text(mapped, {"bos_token": "<s>", "eos_token": "</s>"})

    plain, text = Text(tokenizer, {"bos_token": "<s>", "eos_token": "</s>"}), opened()
    ids = text.encode("Hello <|x|> there")
    assert ids == plain.encode("Hello <|x|> there") and text.decode(ids) == plain.decode(ids) and text.decode(ids, skip_special=False)[:3] == "<s>"
    assert (text.vocabulary, text.bos_id, text.eos_ids, text.special_tokens) == (plain.vocabulary, plain.bos_id, plain.eos_ids, plain.special_tokens)
    assert [text.token_bytes(i) for i in range(-1, 800)] == [plain.token_bytes(i) for i in range(-1, 800)]
    assert not built
    for other in ("naïve ☃", "x" * (LONGEST_TEXT + 1), "z" * 500):
        built.clear()
        assert opened().encode(other) == plain.encode(other) and built == [1]
    built.clear()
    for _ in range(FIRST_TEXTS + 1):
        assert text.encode("again") == plain.encode("again")
    assert built == [1] and text.to_json() == plain.to_json()
    built.clear()
    opened().prepare()
    assert built == [1]


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:40], lambda d: d[:-1], lambda d: b"X" + d[1:], lambda d: d[:16] + b"[" + d[17:]])
def test_a_damaged_file_is_no_file(tmp_path: Path, damage: Any) -> None:
    data = make(trained("digits"))
    assert data is not None
    (tmp_path / FILE).write_bytes(damage(data))
    assert MappedTokenizer.open(tmp_path / FILE, lambda: trained("digits")) is None
    assert MappedTokenizer.open(tmp_path / "none", lambda: trained("digits")) is None
