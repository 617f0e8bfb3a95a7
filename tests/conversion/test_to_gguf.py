"""octavo convert --to gguf:TYPE: read back by the gguf package and by Octavo; conventions, tokenizer, exactness."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints.checkpoint_files import write_gguf
from gguf import GGUFReader, quants

from octavo.checkpoints import open_checkpoint
from octavo.conversion import convert
from octavo.errors import CheckpointError

from .small_model import make, numbers

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL", "TQ1_0", "TQ2_0",
         "MXFP4")
NEARNESS = {"F32": 0, "F16": 1e-3, "BF16": 0, "TQ1_0": 1.1, "TQ2_0": 1.1, "Q2_K": 0.35, "Q3_K_M": 0.18}  # relative error of a matrix; else 0.13


def by_package(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for tensor in GGUFReader(path).tensors:
        found[tensor.name] = quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_each_type_is_read_back(kind: str, model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.gguf", to=f"gguf:{kind}", threads=2)
    before, after, theirs = numbers(model), open_checkpoint(tmp_path / "m.gguf"), by_package(tmp_path / "m.gguf")
    assert before.keys() == after.tensors.keys() and len(theirs) == len(before)
    for name, expected in before.items():
        got = after.read(name).dequantize()
        bound = 0 if expected.ndim == 1 else NEARNESS.get(kind, 0.13)
        assert np.linalg.norm(got - expected) <= bound * np.linalg.norm(expected), name
    # Rotary pairs side by side: row 1 of a head is the first of the second half.
    q = before["model.layers.0.self_attn.q_proj.weight"]
    if kind == "F32":
        np.testing.assert_array_equal(theirs["blk.0.attn_q.weight"][1], q[32])
        np.testing.assert_array_equal(theirs["blk.0.ffn_down.weight"], before["model.layers.0.mlp.down_proj.weight"])


def test_config_and_tokenizer_come_back(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "m.gguf", to="gguf:Q8_0")
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "m.gguf")
    for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
                "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id"):
        assert after.config[key] == before.config[key], key
    ours, theirs = before.tokenizer_files(), after.tokenizer_files()
    assert theirs["config"]["chat_template"] == ours["config"]["chat_template"]
    for text in ("Once upon a time, there was a little girl.", "  two  spaces\nand \u00e9\u4f60 1234", "", " a"):
        ids = ours["tokenizer"].encode(text).ids
        assert theirs["tokenizer"].encode(text).ids == ids, text
        assert theirs["tokenizer"].decode(ids) == ours["tokenizer"].decode(ids)
    fields = GGUFReader(tmp_path / "m.gguf").fields
    assert fields["general.file_type"].contents() == 7 and len(fields["tokenizer.ggml.tokens"].contents()) == 512


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "MXFP4", "BF16"])
def test_gguf_to_gguf_keeps_every_byte(architecture: str, kind: str, tmp_path: Path) -> None:
    """Of all architectures: their conventions are undone and done again."""
    source = write_gguf(tmp_path / "a.gguf", architecture, kind)
    report = convert(source, tmp_path / "b.gguf", to="gguf")
    assert all(row.exact for row in report.rows)
    before, after = {t.name: t for t in GGUFReader(source).tensors}, {t.name: t for t in GGUFReader(tmp_path / "b.gguf").tensors}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tensor_type == after[name].tensor_type, name
        if "norm" in name:  # 1 + w, from w, which was 1 + w less 1
            np.testing.assert_allclose(tensor.data, after[name].data, atol=1e-6)
        else:
            np.testing.assert_array_equal(tensor.data, after[name].data)
    assert open_checkpoint(tmp_path / "b.gguf").config == open_checkpoint(source).config


def test_quantized_folder_is_written_exactly_or_refused(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "gptq", to="gptq", quantization="W4g64A16")
    report = convert(tmp_path / "gptq", tmp_path / "exact.gguf", to="gguf")
    assert all(row.exact for row in report.rows)
    name = "model.layers.1.mlp.down_proj.weight"
    before, after = open_checkpoint(tmp_path / "gptq"), open_checkpoint(tmp_path / "exact.gguf")
    np.testing.assert_array_equal(after.read(name).dequantize(), before.read(name).dequantize())
    assert after.tensors[name].stored == "Q4_0" and after.tensors["lm_head.weight"].stored == "BF16"
    with pytest.raises(CheckpointError, match=r"Q6_K holds int6 .*--requantize"):
        convert(tmp_path / "gptq", tmp_path / "no.gguf", to="gguf:Q6_K")
    assert not (tmp_path / "no.gguf").exists()
    convert(tmp_path / "gptq", tmp_path / "yes.gguf", to="gguf:Q6_K", requantize=True)
    stored = open_checkpoint(tmp_path / "yes.gguf").tensors
    assert stored["model.layers.1.mlp.up_proj.weight"].stored == "Q6_K" and stored[name].stored == "Q8_0", "rows of 640 are no blocks of 256"


def test_rope_scaling_of_llama3(tmp_path: Path, tiny_model: Path) -> None:
    folder = make(tmp_path / "m", tiny_model, tied=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                         "original_max_position_embeddings": 8192}}
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "m.gguf", to="gguf:Q8_0")
    after = open_checkpoint(tmp_path / "m.gguf")
    assert after.config["rope_scaling"] == config["rope_scaling"] and after.config["rope_theta"] == 500000.0
    assert after.config["tie_word_embeddings"] and "lm_head.weight" not in after.tensors


def test_float32_and_float16_sources(tmp_path: Path) -> None:
    """What lies in the mapped file is rounded as it lies there."""
    for kind in ("F32", "F16", "BF16"):
        source = write_gguf(tmp_path / f"{kind}.gguf", "qwen3", kind)
        convert(source, tmp_path / f"{kind}-q.gguf", to="gguf:Q4_0")
        before, after = by_package(source), {t.name: t for t in GGUFReader(tmp_path / f"{kind}-q.gguf").tensors}
        expected = quants.quantize(before["blk.1.ffn_up.weight"].astype(np.float32), after["blk.1.ffn_up.weight"].tensor_type)
        assert after["blk.1.ffn_up.weight"].tensor_type.name == "Q4_0"
        np.testing.assert_array_equal(after["blk.1.ffn_up.weight"].data, expected)


def test_tokenizer_and_description_go_over_as_they_are(smollm2_path: Path, tmp_path: Path) -> None:
    """Between GGUF files: every key of the tokenizer and of the model's description, but not what is of the file."""
    source = GGUFReader(smollm2_path)
    convert(smollm2_path, tmp_path / "m.gguf", to="gguf:Q8_0", requantize=True)
    written = GGUFReader(tmp_path / "m.gguf")
    of_a_file = {"general.file_type", "general.quantization_version", "general.alignment"}
    keys = [key for key in source.fields if key.startswith(("tokenizer.", "general.")) and key not in of_a_file]
    assert len(keys) > 8 and "tokenizer.ggml.tokens" in keys
    for key in keys:
        theirs, ours = source.fields[key], written.fields[key]
        assert theirs.types == ours.types and [bytes(part) for part in theirs.parts] == [bytes(part) for part in ours.parts], key
