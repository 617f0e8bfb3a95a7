"""Hugging Face folders against the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as save_torch

from octavo.checkpoints import open_checkpoint
from octavo.errors import CheckpointError, UsageError

NAME = "model.layers.0.self_attn.q_proj.weight"
DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8,
          "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@pytest.mark.parametrize("stored", DTYPES)
def test_every_type_reads_as_the_library_reads_it(stored: str, folder: Path) -> None:
    values = torch.linspace(-90, 100, 21 * 8).reshape(21, 8).abs() if stored == "U8" else torch.linspace(-90, 100, 21 * 8).reshape(21, 8)
    save_torch({"x.weight": values.to(DTYPES[stored]), "odd": torch.ones(3, dtype=torch.uint8)}, folder / "model.safetensors")
    ours = open_checkpoint(folder)
    info = ours.tensors["x.weight"]
    assert (info.stored, info.shape, info.nbytes) == (stored, (21, 8), 21 * 8 * DTYPES[stored].itemsize)
    expected = values.to(DTYPES[stored]).to(torch.float32).numpy()
    np.testing.assert_array_equal(ours.read("x.weight").dequantize(), expected)
    np.testing.assert_array_equal(ours.read("x.weight", slice(3, 11)).dequantize(), expected[3:11])
    if stored in ("F32", "F16", "BF16"):
        assert not ours.read("x.weight").codes.flags.owndata


def test_real_folder(shared_data: Path) -> None:
    path = shared_data / "models" / "babyllama105-hf"
    ours = open_checkpoint(path)
    with safe_open(path / "model.safetensors", "np") as theirs:
        assert set(ours.tensors) == set(theirs.keys())
        for name in theirs.keys():  # noqa: SIM118 - no mapping
            np.testing.assert_array_equal(ours.read(name).dequantize(), theirs.get_tensor(name))
            ours.release(name)
            np.testing.assert_array_equal(ours.read(name).dequantize(), theirs.get_tensor(name))
    assert ours.config["model_type"] == "llama"
    files = ours.tokenizer_files()
    assert files["tokenizer"].get_vocab_size() == 105 and "generation" in files


def shards(folder: Path) -> dict[str, str]:
    """Splits the folder's file in two with an index, and returns the weight_map."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file_name = f"model-0000{number}-of-00002.safetensors"
        save_torch({name: tensors[name] for name in part}, folder / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_read_as_one(folder: Path) -> None:
    whole = open_checkpoint(folder)
    expected = {name: whole.read(name).dequantize() for name in whole.tensors}
    weight_map = shards(folder)
    ours = open_checkpoint(folder)
    assert set(ours.tensors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(ours.read(name).dequantize(), values)
        assert ours.tensors[name].file.name == weight_map[name]


def test_missing_shard_is_named(folder: Path) -> None:
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("target", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "x.bin", ".safetensors",
                                    "a\\b.safetensors", 7, None, "a\0.safetensors"])
def test_index_may_not_lead_elsewhere(target: object, folder: Path) -> None:
    weight_map = shards(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**weight_map, NAME: target}}))
    with pytest.raises(CheckpointError, match=r"index\.json: tensor 'model.*q_proj.weight' is said to lie in"):
        open_checkpoint(folder)


def test_index_that_names_the_wrong_shard(folder: Path) -> None:
    weight_map = shards(folder)
    other = next(file for file in weight_map.values() if file != weight_map[NAME])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**weight_map, NAME: other}}))
    with pytest.raises(CheckpointError, match=f"{other}: tensor '{NAME}' is missing"):
        open_checkpoint(folder)


def test_template_files_win(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert open_checkpoint(folder).tokenizer_files()["config"]["chat_template"] == "old"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert open_checkpoint(folder).tokenizer_files()["config"]["chat_template"] == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert open_checkpoint(folder).tokenizer_files()["config"]["chat_template"] == "jinja"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert open_checkpoint(folder).tokenizer_files()["config"]["chat_template"] == {"default": "jinja", "tool_use": "tools"}


@pytest.mark.parametrize("method", ["aqlm", "spqr", "vptq", "quip", "eetq"])
def test_foreign_quantization_is_named(method: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    with pytest.raises(CheckpointError, match=f"quantized with '{method}', a format that is not read.*take the unquantized model"):
        open_checkpoint(folder)


def test_pickles_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights \(pytorch_model\.bin\), which can run code"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="pickled weights"):
        open_checkpoint(folder / "pytorch_model.bin")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file or folder.*hub id"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no weights that can be read"):
        open_checkpoint(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"holds 1 GGUF files.*a\.gguf"):
        open_checkpoint(tmp_path)


def test_offline_hub_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: offline mode is on, and the model is not in the cache at .*connect once") as caught:
        open_checkpoint("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_hub_cache_is_used_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    import huggingface_hub

    asked = {}

    def download(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("someone/model", revision="v2").config["model_type"] == "llama"
    assert asked["name"] == "someone/model" and asked["revision"] == "v2"
    assert "*.bin" not in asked["allow_patterns"] and "*.safetensors" in asked["allow_patterns"]  # type: ignore[operator]


def test_bfloat16_codes_are_bits(folder: Path) -> None:
    values = np.array([[1.5, -2.0, 3e38]], ml_dtypes.bfloat16)
    save_torch({"x": torch.from_numpy(values.astype(np.float32)).bfloat16()}, folder / "model.safetensors")
    codes = open_checkpoint(folder).read("x").codes
    assert codes.dtype == np.uint16 and (codes == values.view(np.uint16)).all()
