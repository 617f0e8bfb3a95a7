"""Fixtures of the conversion tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from .small_model import make


@pytest.fixture(autouse=True)
def _own_cache(cache_dir: Path) -> None:
    """Digests are remembered in the test's own folder."""


@pytest.fixture
def model(tmp_path: Path, tiny_model: Path) -> Path:
    """A Llama of two layers in bfloat16."""
    return make(tmp_path / "model", tiny_model)
