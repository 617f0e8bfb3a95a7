"""Fixtures of the checkpoint tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .checkpoint_files import make_folder


@pytest.fixture
def folder(tmp_path: Path, shared_data: Path) -> Path:
    """A Llama of one layer, hidden size 8, as a Hugging Face folder."""
    return make_folder(tmp_path / "model", shared_data)
