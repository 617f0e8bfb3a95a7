"""The content key: changes with the bytes, remembered while they stay."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from octavo.checkpoints import _digest, open_checkpoint


def settle(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry for each file that is really hashed."""
    hashed: list[int] = []
    remember = _digest._remember

    def count(memo: Path, record: dict[str, object]) -> None:
        hashed.append(1)
        remember(memo, record)

    monkeypatch.setattr(_digest, "_remember", count)
    return hashed


def test_it_follows_every_byte_and_not_the_place(folder: Path, tmp_path: Path, cache_dir: Path) -> None:
    key = open_checkpoint(folder).content_key()
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert open_checkpoint(tmp_path / "elsewhere").content_key() == key
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + (b"\n" if name != "model.safetensors" else bytes([data[-1] ^ 1])) if name == "model.safetensors"
                                    else data + b"\n")
        changed = open_checkpoint(folder).content_key()
        assert changed != key
        key = changed


def test_a_second_start_hashes_nothing(folder: Path, cache_dir: Path, counted: list[int]) -> None:
    settle(folder)
    key = open_checkpoint(folder).content_key()
    first = len(counted)
    assert first == 5 and open_checkpoint(folder).content_key() == key and len(counted) == first
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    settle(folder)
    assert open_checkpoint(folder).content_key() != key and len(counted) == first + 1


def test_fresh_files_are_not_remembered(folder: Path, cache_dir: Path, counted: list[int]) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text())
    settle(folder)
    os.utime(folder / "config.json")
    open_checkpoint(folder).content_key()
    assert len(counted) == 4


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"identity": 3}', b'{"identity": [], "sha256": "zz"}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_memo_counts_for_nothing(damage: bytes, folder: Path, cache_dir: Path) -> None:
    settle(folder)
    key = open_checkpoint(folder).content_key()
    for memo in (cache_dir / "digests").iterdir():
        memo.write_bytes(damage)
    assert open_checkpoint(folder).content_key() == key


def test_a_cache_that_cannot_be_written_only_costs_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settle(folder)
    assert open_checkpoint(folder).content_key(tmp_path / "file") == open_checkpoint(folder).content_key(tmp_path / "cache")


def test_one_file_is_plain_sha256(tmp_path: Path) -> None:
    data = os.urandom(5 << 20)
    (tmp_path / "x").write_bytes(data)
    assert _digest.digest_of_file(tmp_path / "x", tmp_path / "memos") == hashlib.sha256(data).hexdigest()
