"""Tokenizers out of GGUF metadata, against llama.cpp's own vectors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.checkpoints import open_checkpoint
from octavo.errors import CheckpointError

from .checkpoint_files import write_gguf

VOCABULARIES = ["llama-bpe", "llama-spm", "qwen2", "gpt-2", "deepseek-coder", "bert-bge"]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpp_vectors(name: str, shared_data: Path) -> None:
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"
    tokenizer = open_checkpoint(path).tokenizer_files()["tokenizer"]
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    expected = [[int(i) for i in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    assert len(texts) == len(expected) == 47
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        if name != "bert-bge":  # which drops case and accents
            decoded = tokenizer.decode(ids, skip_special_tokens=False)
            assert decoded == text or (name == "llama-spm" and decoded.lstrip(" ") == text.lstrip(" "))


def test_first_and_last_tokens(shared_data: Path) -> None:
    def around(name: str) -> list[str]:
        tokenizer = open_checkpoint(shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf").tokenizer_files()["tokenizer"]
        return [tokenizer.id_to_token(i) for i in tokenizer.encode("x").ids]

    assert around("llama-bpe")[0] == "<|begin_of_text|>"
    assert around("llama-spm")[0] == "<s>"
    assert around("qwen2") == ["x"] and around("gpt-2") == ["x"]
    assert (around("bert-bge")[0], around("bert-bge")[-1]) == ("[CLS]", "[SEP]")


def test_smollm2_is_transformers_conversion(smollm2_path: Path, shared_data: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    files = open_checkpoint(smollm2_path).tokenizer_files()
    ours = files["tokenizer"]
    for line in (shared_data / "text" / "calibration-mixed.jsonl").read_text(encoding="utf-8").splitlines()[::25]:
        # transformers' conversion overlooks tokenizer.ggml.pre, which sets digits apart: it cuts "  6" otherwise than the model's own
        # tokenizer and llama.cpp do. Without digits the two must agree.
        text = "".join("#" if c.isdigit() else c for c in json.loads(line)["text"])
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert files["config"]["chat_template"] == theirs.chat_template
    assert (files["config"]["bos_token"], files["config"]["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert files["generation"]["eos_token_id"] == [2, 0]
    chat = "<|im_start|>user\nHi<|im_end|>\n"
    assert ours.encode(chat).ids == theirs(chat)["input_ids"] and ours.encode(chat).ids[0] == 1


def test_specials_and_template(tmp_path: Path) -> None:
    files = open_checkpoint(write_gguf(tmp_path / "m.gguf", "llama", tokenizer="llama")).tokenizer_files()
    assert files["config"]["bos_token"] == "<s>" and files["config"]["chat_template"].startswith("{{ messages")
    assert files["generation"] == {"eos_token_id": [2, 3], "bos_token_id": 1}
    tokenizer = files["tokenizer"]
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("the<|im_end|>the").ids] == [
        "<s>", "\u2581the", "<|im_end|>", "\u2581the"]
    assert tokenizer.decode(tokenizer.encode("the the<|im_end|>").ids) == "the the"


def test_unknown_rules_are_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"smollm", b"marmot"))
    with pytest.raises(CheckpointError, match=r"m\.gguf: cuts its text by the rule 'marmot'.*known: .*qwen2"):
        open_checkpoint(path).tokenizer_files()
    bare = write_gguf(tmp_path / "n.gguf", "llama", tokenizer=None)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        open_checkpoint(bare).tokenizer_files()
