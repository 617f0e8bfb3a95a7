"""What arrives is what was there: numbers, small files, the manifest; and what cannot arrive is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from octavo.checkpoints import InexactError, open_checkpoint
from octavo.checkpoints.fp8 import Fp8Writer
from octavo.conversion import convert
from octavo.errors import CheckpointError, OctavoError, UsageError
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

from .small_model import contents, make, numbers, stored

Q = "model.layers.0.self_attn.q_proj.weight"


def test_unquantized_numbers_arrive_bit_for_bit(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out", to="safetensors")
    before, after = stored(model), stored(tmp_path / "out")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert all(row.exact for row in report.rows) and report.bits_per_weight == 16


def test_natural_precision_of_the_target(model: Path, tmp_path: Path) -> None:
    """fp8 from bfloat16: the blocks that quantizing the whole tensor gives, the same whatever the number of threads."""
    convert(model, tmp_path / "one", to="fp8", threads=1)
    convert(model, tmp_path / "two", to="fp8", threads=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    spec = TensorSpec("fp8e4m3", "block", 128, 128)
    before, after = numbers(model), open_checkpoint(tmp_path / "one")
    for name in (Q, "model.layers.1.mlp.down_proj.weight"):
        expected = quantize(before[name], spec)
        assert np.array_equal(after.read(name).codes, expected.codes) and np.array_equal(after.read(name).scales, expected.scales)
    assert after.tensors["lm_head.weight"].stored == "BF16", "convention keeps the output layer"
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128] and "lm_head" in config["quantization_config"]["modules_to_not_convert"]


def test_quantized_numbers_come_back_exactly(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "fp8", to="fp8")
    report = convert(tmp_path / "fp8", tmp_path / "plain", to="safetensors")
    assert all(row.exact for row in report.rows)
    before, after = numbers(tmp_path / "fp8"), stored(tmp_path / "plain")
    assert all(np.array_equal(before[name], after[name]) for name in before)
    again = convert(tmp_path / "fp8", tmp_path / "again", to="fp8")
    assert all(row.exact for row in again.rows)
    assert contents(tmp_path / "again")["model.safetensors"] == contents(tmp_path / "fp8")["model.safetensors"]


def test_shards_and_index(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out", to="safetensors", shard_size=500_000)
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {p.name for p in shards}
    assert index["metadata"]["total_size"] == report.bytes_after
    before, after = stored(model), stored(tmp_path / "out")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_chosen_precision(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="fp8", quantization="Wfp8b64x32A16", keep=["*.down_proj.weight"], include=["lm_head*"])
    found = open_checkpoint(tmp_path / "out")
    assert found.tensors[Q].spec == TensorSpec("fp8e4m3", "block", 64, 32)
    assert found.tensors["model.layers.0.mlp.down_proj.weight"].stored == "BF16"
    assert found.tensors["lm_head.weight"].spec == TensorSpec("fp8e4m3", "block", 64, 32)


def test_what_does_not_fit_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"fp8 cannot hold 14 weights exactly.*_proj.*and 13 more.*--requantize"):
        convert(model, tmp_path / "out", to="fp8", quantization="W4g32A16")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("cache",)) == ["model"]
    report = convert(model, tmp_path / "out", to="fp8", quantization="W4g32A16", requantize=True)
    assert not report.rows[0].exact and report.rows[0].written == "Wfp8b128x128"


def test_numbers_that_do_not_fit_though_their_precision_does(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight turns out, in its later rows, not to fit: refused by name, or rounded and everything laid out anew."""
    convert(model, tmp_path / "fp8", to="fp8")
    fill = Fp8Writer.fill

    def picky(self: Fp8Writer, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        if name == "model.layers.1.mlp.up_proj.weight" and first and np.array_equal(tensor.dequantize(), before[name][first : first + tensor.shape[0]]):
            raise InexactError("a scale is no power of two")
        fill(self, name, tensor, first, out)

    before = numbers(tmp_path / "fp8")
    monkeypatch.setattr("octavo.conversion._pieces.CHUNK", 1)
    monkeypatch.setattr(Fp8Writer, "fill", picky)
    with pytest.raises(CheckpointError, match=r"up_proj.weight exactly: a scale is no power of two"):
        convert(tmp_path / "fp8", tmp_path / "out", to="fp8")
    assert not list(tmp_path.glob(".out*"))
    monkeypatch.setattr("octavo.conversion._pieces._rounded", lambda piece, spec, extent: quantize(piece.dequantize() * np.float32(1.01), spec))
    report = convert(tmp_path / "fp8", tmp_path / "out", to="fp8", requantize=True)
    assert [(row.tensors, row.exact) for row in report.rows if row.written.startswith("W")] == [(13, True), (1, False)]


def test_tied_output_layer_is_written_once(tmp_path: Path, tiny_model: Path) -> None:
    report = convert(make(tmp_path / "tied", tiny_model, tied=True), tmp_path / "out", to="safetensors")
    assert "lm_head.weight" not in stored(tmp_path / "out") and any("written once" in note for note in report.notes)


def test_small_files_travel_along(model: Path, tmp_path: Path) -> None:
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (model / "vocab.bpe").write_bytes(b"\xff\x00 bytes")
    (model / "modeling_x.py").write_text("raise SystemExit")
    (model / "training_args.bin").write_bytes(b"\x80\x04")
    (model / "recipe.yaml").write_text("old: recipe")
    convert(model, tmp_path / "out", to="fp8")
    there = contents(tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "LICENSE", "README.md", "vocab.bpe",
                 "additional_chat_templates/tools.jinja"):
        assert there[name] == (model / name).read_bytes(), name
    assert not {"modeling_x.py", "training_args.bin", "recipe.yaml"} & there.keys()
    convert(model, tmp_path / "code", to="fp8", code=True)
    assert (tmp_path / "code" / "modeling_x.py").is_file()


def test_a_link_out_of_the_folder_is_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (model / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        convert(model, tmp_path / "out", to="fp8")


def test_manifest(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "out", to="fp8")
    manifest = json.loads((tmp_path / "out" / "octavo-manifest.json").read_text())
    assert manifest["source"]["name"] == "model" and manifest["source"]["format"] == "safetensors"
    assert manifest["source"]["sha256"]["model.safetensors"] == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["scheme"] == {"Wfp8b128x128": 14, "BF16": 7} and manifest["tensors"] == {"exact": 7, "rounded": 14}
    assert manifest["calibration"] == {"text_sha256": None, "seed": None} and manifest["target"] == "fp8" and manifest["octavo"]


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    report = convert(model, tmp_path / "out", to="fp8", dry_run=True)
    real = convert(model, tmp_path / "real", to="fp8")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
    assert report.dry and (report.rows, report.bytes_after) == (real.rows, real.bytes_after)


def test_gguf_source_brings_its_tokenizer(smollm2_path: Path, tmp_path: Path) -> None:
    report = convert(smollm2_path, tmp_path / "out", to="safetensors:bf16")
    from octavo.checkpoints import open_checkpoint

    source, made = open_checkpoint(smollm2_path), open_checkpoint(tmp_path / "out")
    assert made.config == source.config and made.tensors.keys() == source.tensors.keys()
    text = "Once upon a time, 12 × 3 = 36."
    assert made.tokenizer_files()["tokenizer"].encode(text).ids == source.tokenizer_files()["tokenizer"].encode(text).ids
    assert made.tokenizer_files()["config"]["chat_template"] == source.tokenizer_files()["config"]["chat_template"]
    assert {row.rounded for row in report.rows} == {"to bf16"}


@pytest.mark.parametrize(("source", "out", "message"), [
    ("model", "model", "is, or holds, the source"), ("model", ".", "is, or holds, the source"), ("model", "model/out", "lies in the source's folder"),
    ("model", "there", "exists"), ("nothing", "out", "no such file"),
])
def test_places_that_cannot_be(model: Path, tmp_path: Path, source: str, out: str, message: str) -> None:
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=message):
        convert(tmp_path / source, tmp_path / out, to="fp8")
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    convert(model, tmp_path / "out", to="fp8", overwrite=True)
    assert not (tmp_path / "out" / "old").exists() and open_checkpoint(tmp_path / "out").codec == "fp8"
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be written: Permission denied"):
        convert(model, tmp_path / "closed" / "out", to="fp8")


def test_a_file_where_a_folder_should_be(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory"):
        convert(model, tmp_path / "file" / "out", to="fp8")


@pytest.mark.parametrize(("wish", "message"), [
    ({"to": "gptqq"}, "unknown target"), ({"to": "safetensors:int3"}, "unknown type 'int3'"), ({"to": "fp8", "quantization": "W8A8C8"}, "cache"),
    ({"to": "fp8", "quantization": "W4A16_AWQQ"}, "precision"), ({"to": "fp8", "quantization": "Wfp8tAfp8ts"}, "calibration"),
    ({"to": "fp8", "out": "out.gguf"}, "a folder"), ({"to": "fp8", "dtype": "int8"}, "unknown type 'int8'"),
])
def test_wishes_that_cannot_be(model: Path, tmp_path: Path, wish: dict[str, str], message: str) -> None:
    with pytest.raises(OctavoError, match=message):
        convert(model, tmp_path / wish.pop("out", "out"), **wish)
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))


def test_damaged_numbers_are_named(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-2:] = b"\xc0\x7f"  # a NaN in bfloat16
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        convert(model, tmp_path / "out", to="fp8")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
