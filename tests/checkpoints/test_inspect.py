"""`octavo inspect` on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo.cli import main


def test_json(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(smollm2_path), "--scheme", "W4A16C8", "--json"]) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["model_type"], found["parameters"], len(found["tensors"])) == ("gguf", "llama", 134_515_008, 272)
    assert found["stored"]["Q4_1"]["tensors"] == 210
    prices = {scheme["name"]: scheme for scheme in found["schemes"]}
    assert list(prices) == ["16bit", "8bit", "4bit", "W4A16C8"]
    assert prices["16bit"]["weight_bytes"] == pytest.approx(2 * 134_515_008, rel=0.01)
    assert prices["8bit"]["weight_bytes"] == pytest.approx(134_515_008 * 8.05 / 8, rel=0.01)  # an fp32 scale for each row
    assert prices["16bit"]["kv_bytes_per_token"] == 2 * 30 * 3 * 64 * 2
    assert prices["W4A16C8"]["kv_bytes_per_token"] == 2 * 30 * 3 * (64 + 4)


def test_text_gathers_equal_layers(smollm2_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(smollm2_path)])
    text = capsys.readouterr().out
    assert "model.layers.0 to 29, each" in text and "134.52 M parameters" in text and "W4g64A8g64C16" in text
    main(["inspect", str(smollm2_path), "--tensors"])
    assert "model.layers.29.mlp.down_proj.weight" in capsys.readouterr().out


def test_models_that_are_not_served_are_still_shown(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(shared_data / "tokenizers" / "ggml-vocab-bert-bge.gguf")])
    assert "not served: unknown model_type 'bert'" in capsys.readouterr().out


def test_unknown_scheme_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--scheme", "W99"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
