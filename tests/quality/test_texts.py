"""Texts by name: documents, hashes, and what cannot be read."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from octavo.errors import UsageError
from octavo.quality import read_text
from octavo.quality.texts import calibration_text

WIKI = " = One = \n \n Text .\n = = Part = = \n More .\n = Two = \n \n Text .\n"


def test_articles_of_wikitext_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "wiki.txt"
    path.write_text(WIKI)
    text = read_text(path)
    assert [document[:7] for document in text.documents] == [" = One ", " = Two "] and "".join(text.documents) == WIKI
    assert text.name == "wiki.txt" and text.sha256 == hashlib.sha256(WIKI.encode()).hexdigest()


def test_lines_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    chat = {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]}
    path.write_text("\n".join(map(json.dumps, [{"text": "a"}, {"content": "b"}, "c", chat])))
    assert read_text(str(path)).documents == ["a\n\n", "b\n\n", "c\n\n", "d\n\ne\n\n"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name, content, what in (("a.jsonl", "{", "line 1 is not JSON"), ("b.jsonl", '{"id": 1}', "line 1 holds no text"), ("c.jsonl", "\n", "holds no text")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=what):
            read_text(tmp_path / name)
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe")
    for name in ("d.txt", "missing.txt"):
        with pytest.raises(UsageError, match="cannot read the text"):
            read_text(tmp_path / name)


def test_wikitext2_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("wikitext-2-raw/wiki.test.raw", WIKI)
        files.writestr("wikitext-2-raw/wiki.train.raw", "other words")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(archive))
    assert len(read_text("wikitext2").documents) == 2
    found = calibration_text("wikitext2")  # the training part: nothing of what is evaluated
    assert found is not None and "".join(found.documents) == "other words" and "training" in found.name
    assert calibration_text(str(archive)) is None
    with pytest.raises(UsageError, match="quality is measured on this text"):
        calibration_text("receipt")

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(UsageError, match="cannot be downloaded"):
        read_text("wikitext2")
