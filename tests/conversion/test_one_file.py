"""Formats that are one file: every tensor through their own writer, the manifest beside the file, resumable as folders are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.checkpoints import FileWriter, Layout, Part, WriterOptions
from octavo.conversion import convert
from octavo.errors import UsageError
from octavo.qtensor import QTensor
from octavo.schemes import TensorSpec

from .small_model import numbers
from .test_interrupted import stop_after


class Plainest(FileWriter):
    """A head of 16 bytes, then every tensor as float32, matrices upside down: names, order and precision are the writer's own."""

    def __init__(self, options: WriterOptions) -> None:
        self.variant = options.variant

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        return None if not spec.quantized else "it holds unquantized numbers"

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec("fp32")

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        return {name.upper(): Part("ROWS", shape, held=("<f4", shape))}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        flipped = out[name.upper()][::-1]
        flipped[first : first + tensor.shape[0]] = tensor.dequantize()

    def layout(self, file_name: str, parts: Mapping[str, Part], tokenizer: Mapping[str, Any]) -> Layout:
        assert tokenizer["tokenizer"].get_vocab_size() > 100
        places, end = {}, 16
        for name, part in parts.items():
            places[name] = end, part
            end += 4 * int(np.prod(part.shape))
        return Layout(file_name, b"plainest head...", places, end)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.conversion._plan.writers", lambda: {"plainest": Plainest})
    monkeypatch.setattr("octavo.checkpoints._partial.COMMIT_SECONDS", 0.0)


def expected(model: Path) -> bytes:
    return b"plainest head..." + b"".join(values[::-1].astype("<f4").tobytes() for values in numbers(model).values())


def test_everything_goes_into_it(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out.gguf", to="plainest:x")
    assert (tmp_path / "out.gguf").read_bytes() == expected(model)
    assert all(row.exact for row in report.rows) and report.files == ["out.gguf", "out.gguf.octavo-manifest.json"]
    manifest = json.loads((tmp_path / "out.gguf.octavo-manifest.json").read_text())
    assert manifest["target"] == "plainest:x" and manifest["tensors"] == {"exact": 21, "rounded": 0}
    assert not list(tmp_path.glob(".*"))


def test_interrupted_and_again(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(model, tmp_path / "out.gguf", to="plainest", threads=1, on_progress=stop_after(5))
    assert not (tmp_path / "out.gguf").exists()
    assert convert(model, tmp_path / "out.gguf", to="plainest").resumed == 5
    assert (tmp_path / "out.gguf").read_bytes() == expected(model)


def test_overwritten_only_when_asked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("old")
    with pytest.raises(UsageError, match="exists"):
        convert(model, tmp_path / "out.gguf", to="plainest")
    convert(model, tmp_path / "out.gguf", to="plainest", overwrite=True)
    assert (tmp_path / "out.gguf").read_bytes() == expected(model)


def test_the_name_must_be_a_files(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file"):
        convert(model, tmp_path / "out", to="plainest")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))
