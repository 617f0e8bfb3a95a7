"""Mapped files: what headers are read from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from octavo.checkpoints._mapped import MappedFile


def test_headers_are_of_the_file_that_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"header and more")
    file = MappedFile(path)
    assert file.header(0, 6) == b"header" and file.header(11, 99) == b"more"
    (tmp_path / "other").write_bytes(b"another header!")
    os.replace(tmp_path / "other", path)
    assert file.header(0, 6) == b"header"
    path.unlink()
    assert file.header(0, 6) == b"header"
    path.write_bytes(b"header and more")
    monkeypatch.delattr(os, "posix_fadvise")  # a system without it
    assert MappedFile(path).header(11, 99) == b"more"


def test_asking_for_large_pages_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 20_000)
    file = MappedFile(path)
    file.in_large_pages()
    assert file.array("u1", 256, 256 * 9_999).tolist() == list(range(256))
