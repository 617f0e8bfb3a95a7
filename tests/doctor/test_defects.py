"""`octavo doctor checkpoint` finds each planted defect under its own name, and nothing in checkpoints that are sound."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octavo.cli import main
from octavo.doctor import Report, topics

from . import patients as p

Q1 = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
SECOND = "model-00002-of-00002.safetensors"


def examine(path: Path) -> Report:
    return topics()["checkpoint"].examine(path)


def put(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[p.Tensors], object]:
    return lambda tensors: tensors.update({name: value(tensors[name].copy())})


def at(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def cut(path: Path) -> Path:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return path


def copied(path: Path, source: str, target: str) -> Path:
    shutil.copy(path / source, path / target)
    return path


def removed(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def extra_shard(path: Path) -> Path:
    return copied(p.shards(p.plain(path)), SECOND, "model-00003-of-00003.safetensors")


def without_index(path: Path) -> Path:
    return removed(extra_shard(path), "model.safetensors.index.json")


def pickled(path: Path) -> Path:
    (p.plain(path) / "pytorch_model.bin").write_bytes(b"PK\x03\x04rest")
    return path


def from_layer(source: str, target: str) -> Callable[[p.Tensors], object]:
    return lambda t: t.update({name.replace(source, target): array for name, array in t.items() if source in name and array.ndim == 2})


# What is done to a sound checkpoint -> the code that must be found, and a text that its tensor or evidence holds.
DEFECTS: list[tuple[str, Callable[[Path], Path], str, str]] = [
    ("a file was cut", lambda d: cut(p.plain(d)), "truncated_file", "lies at bytes"),
    ("a shard is missing", lambda d: removed(p.shards(p.plain(d)), SECOND), "missing_shard", SECOND),
    ("a shard that the index does not list", extra_shard, "unlisted_shard", "model-00003-of-00003"),
    ("two files hold the same tensors", without_index, "duplicate_tensor", "it also lies in"),
    ("pickled weights beside the others", pickled, "pickled_weights", "pytorch_model.bin"),
    ("code of its own", lambda d: p.plain(d, auto_map={"AutoModel": "modeling_x.Model"}), "remote_code", "modeling_x"),
    ("a weight is missing", lambda d: p.edit(p.plain(d), lambda t: t.pop(f"{Q1}.weight")), "missing_tensor", f"{Q1}.weight"),
    ("a layer lacks a weight, unknown architecture", lambda d: p.edit(p.mixture(d), lambda t: t.pop(f"{Q1}.weight")), "uneven_layers", Q1),
    ("a tensor without use", lambda d: p.edit(p.plain(d), lambda t: t.update({f"{Q1}.bias": np.ones(p.HIDDEN, np.float32)})), "extra_tensor", f"{Q1}.bias"),
    ("scales of a weight are missing", lambda d: p.edit(p.gptq(d), lambda t: t.pop(f"{Q1}.scales")), "missing_part", f"{Q1}.scales"),
    ("a weight of another shape", lambda d: p.edit(p.plain(d), put(f"{Q1}.weight", lambda w: w[:64])),
     "wrong_shape", "[64, 128], the config asks for [128, 128]"),
    ("config has more layers", lambda d: p.plain(d, num_hidden_layers=5), "layer_count", "num_hidden_layers is 5"),
    ("head differs though tied", lambda d: p.plain(d, tie_word_embeddings=True), "tied_head_mismatch", "lm_head.weight"),
    ("NaN in a weight", lambda d: p.edit(p.plain(d), put(f"{Q1}.weight", at((3, 5), np.nan))), "not_finite", "the first in row 3"),
    ("NaN in FP8 codes", lambda d: p.edit(p.fp8_blocks(d), put(f"{Q1}.weight", at((7, 1), np.nan))), "not_finite", "the first in row 7"),
    ("a scale is infinite", lambda d: p.edit(p.gptq(d), put(f"{Q1}.scales", at((2, 7), np.inf))), "scale_not_finite", f"{Q1}.scales"),
    ("scales are all zero", lambda d: p.edit(p.gptq(d), put(f"{Q1}.scales", np.zeros_like)), "zero_scales", f"{Q1}.scales"),
    ("one scale is wild", lambda d: p.edit(p.pack_quantized(d), put(f"{Q1}.weight_scale", at((4, 1), 300.0))), "outlier_scale", f"{Q1}.weight_scale"),
    ("one scale of a tensor is wild", lambda d: p.edit(p.fp8_static(d), put(f"{Q1}.weight_scale", at((0,), 90.0))), "outlier_scale", f"{Q1}.weight_scale"),
    ("scales were cut at float16's end", lambda d: p.edit(p.gptq(d), put(f"{Q1}.scales", at((0, 0), 65504.0))), "scale_overflow", "are 65504"),
    ("scales below float16's digits", lambda d: p.edit(p.gptq(d), put(f"{Q1}.scales", lambda s: s * np.float16(1e-4))), "scale_underflow", f"{Q1}.scales"),
    ("numbers beyond the config's type", lambda d: p.edit(p.plain(d, dtype="float16"), put(f"{Q1}.weight", at((0, 0), 1e5))),
     "dtype_overflow", "float16 ends at 65504"),
    ("dead rows", lambda d: p.edit(p.plain(d), put(f"{Q1}.weight", at((slice(8, 12),), 0.0))), "dead_channels", "4 of 128 rows"),
    ("dead rows of a quantized weight", lambda d: p.edit(p.fp8_blocks(d), put(f"{Q1}.weight", at((slice(8, 12),), 0.0))), "dead_channels", "4 of 128 rows"),
    ("a weight of zeros", lambda d: p.edit(p.plain(d), put(f"{Q1}.weight", np.zeros_like)), "zero_weight", f"{Q1}.weight"),
    ("a layer copied onto another", lambda d: p.edit(p.plain(d), from_layer("layers.1.", "layers.2.")), "identical_weights", "layers.1.mlp.down_proj"),
    ("v2 zero points called v1", lambda d: p.gptq(d, stored="gptq_v2"), "zero_convention", "they were written as gptq_v2"),
    ("v1 zero points called v2", lambda d: p.gptq(d, said="gptq_v2"), "zero_convention", "they were written as gptq"),
    ("v2 zero points called v1, 3 bits", lambda d: p.gptq(d, bits=3, stored="gptq_v2"), "zero_convention", "the middle of 3 bits is 4"),
    ("asymmetric v2 called v1", lambda d: p.gptq(d, sym=False, stored="gptq_v2"), "zero_point_shift", "steps, expected about 0"),
    ("asymmetric called symmetric", lambda d: p.edit_json(p.gptq(d, sym=False), "config.json", lambda c: c["quantization_config"].update(sym=True)),
     "symmetry_contradiction", "different stored values"),
    ("desc_act denied", lambda d: p.edit(p.gptq(d), put(f"{Q1}.g_idx", lambda g: g[::-1].copy())), "act_order_contradiction", "out of order"),
    ("a group that is not there", lambda d: p.edit(p.gptq(d), put(f"{Q1}.g_idx", at((5,), 99))), "act_order_contradiction", "values from 0 to 99"),
    ("bits of the config", lambda d: p.edit_json(p.gptq(d), "config.json", lambda c: c["quantization_config"].update(bits=8)), "bits_contradiction",
     "means 4 bits, the config states 8"),
    ("group of the config", lambda d: p.edit_json(p.gptq(d), "config.json", lambda c: c["quantization_config"].update(group_size=64)), "group_contradiction",
     "4 groups over 128 inputs"),
    ("groups that do not divide", lambda d: p.edit_json(p.gptq(d), "config.json", lambda c: c["quantization_config"].update(group_size=33)),
     "group_divisibility", "128 inputs in groups of 33"),
    ("GPTQ's layout called AWQ", lambda d: p.edit_json(p.gptq(d), "config.json", lambda c: c["quantization_config"].update(quant_method="awq")),
     "layout_contradiction", "packed along inputs"),
    ("AWQ's codes in plain order", lambda d: p.awq(d, order=list(range(8))), "column_order", "correlate"),
    ("the old packing of 3 bits", lambda d: p.pack_quantized(d, 3, old=True), "old_packing", "today's packing of 128 x 3 bits has 12"),
    ("another table than NF4's", lambda d: p.nf4(d, table="fp4"), "wrong_table", "quant_map"),
    ("cache scales under odd names", lambda d: p.fp8_static(d, names="self_attn.{}_cache_scale"), "cache_scales_unread", "no engine looks for this name"),
    ("cache scales, no scheme", lambda d: p.fp8_static(d, cache=False), "cache_scales_unread", "states no quantized KV cache"),
    ("a scheme, no cache scales", lambda d: p.edit(p.fp8_static(d), lambda t: t.pop("model.layers.1.self_attn.v_scale")),
     "cache_scales_missing", "1 of 6 are missing"),
    ("cache scales never calibrated", lambda d: p.fp8_static(d, value=1.0), "cache_scale_value", "never calibrated"),
    ("an expert is missing", lambda d: p.edit(p.mixture(d), lambda t: [t.pop(n) for n in list(t) if "layers.1.mlp.experts.2." in n]), "expert_count",
     "3 experts, the config says 4; the first missing is 2"),
    ("an expert no token reaches", lambda d: p.edit(p.mixture(d), put("model.layers.1.mlp.gate.weight", at((2,), 0.0))), "unrouted_expert", "row 2 is zero"),
    ("an expert calibration never saw", lambda d: p.edit(p.mixture(d), put("model.layers.1.mlp.experts.3.up_proj.input_scale", np.zeros_like)),
     "unrouted_expert", "experts.3.up_proj.input_scale"),
    ("a tokenizer of another model", lambda d: p.edit_json(p.plain(d), "tokenizer.json", lambda t: t["model"]["vocab"].update(x=64)), "vocabulary_mismatch",
     "its largest id is 64, the embedding has 64 rows"),
    ("no tokenizer", lambda d: removed(p.plain(d), "tokenizer.json"), "tokenizer_missing", "tokenizer.json"),
    ("no chat template", lambda d: p.edit_json(p.plain(d), "tokenizer_config.json", lambda t: t.pop("chat_template")),
     "chat_template_missing", "tokenizer_config"),
    ("an end token beyond the vocabulary", lambda d: p.plain(d, eos_token_id=64), "special_token_range", "64, the embedding has 64 rows"),
    ("heads that do not split", lambda d: p.plain(d), "tensor_parallel", "tp=8"),
]


@pytest.mark.parametrize(("make", "code", "text"), [case[1:] for case in DEFECTS], ids=[case[0] for case in DEFECTS])
def test_a_planted_defect_is_found(make: Callable[[Path], Path], code: str, text: str, tmp_path: Path) -> None:
    report = examine(make(tmp_path / "m"))
    found = [f for f in report.findings if f.disorder.code == code]
    assert any(text in f"{f.tensor} {f.evidence}" for f in found), [(f.disorder.code, f.tensor, f.evidence) for f in report.findings]
    assert all(f.disorder.remedy and f.evidence for f in report.findings)


def test_at_least_25_kinds_are_planted() -> None:
    assert len({code for _, _, code, _ in DEFECTS}) >= 25
    assert {code for _, _, code, _ in DEFECTS} <= {d.code for d in topics()["checkpoint"].disorders()}


@pytest.mark.parametrize("kind", p.HEALTHY)
def test_a_sound_checkpoint_raises_no_alarm(kind: str, tmp_path: Path) -> None:
    assert alarms(p.HEALTHY[kind](tmp_path / "m")) == []


def alarms(path: Path) -> list[tuple[str, str, str]]:
    return [(f.disorder.code, f.tensor, f.evidence) for f in examine(path).findings if f.disorder.severity != "info"]


def test_no_alarm_on_real_models(smollm2_path: Path, shared_data: Path) -> None:
    assert alarms(smollm2_path) == []
    for folder in sorted((shared_data / "models").iterdir()):
        if (folder / "config.json").is_file():
            assert alarms(folder) == []


def test_exit_status_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = p.plain(tmp_path / "sound")
    assert main(["doctor", "checkpoint", str(sound)]) == 0
    assert "tensor_parallel" in capsys.readouterr().out
    sick = p.edit(p.plain(tmp_path / "sick"), put(f"{DOWN}.weight", at((0, 0), np.inf)))
    assert main(["doctor", "checkpoint", str(sick)]) == 1
    text = capsys.readouterr().out
    assert "error: not_finite" in text and f"{DOWN}.weight: 1 of 32768 numbers, the first in row 0" in text and "what to do:" in text
    assert main(["doctor", "checkpoint", str(sick), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is False and found["counts"]["error"] >= 1 and found["findings"][0]["severity"] == "error"
    assert main(["doctor", "checkpoint", str(tmp_path / "none")]) == 2
    assert main(["doctor", "shoes", str(sound)]) == 2


def test_names_out_of_files_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = p.edit(p.plain(tmp_path / "m"), lambda t: t.update({"\x1b[2Jx.weight": np.ones((4, 4), np.float32)}))
    main(["doctor", "checkpoint", str(path)])
    assert "\x1b" not in capsys.readouterr().out


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    path = p.edit(p.plain(tmp_path / "m"), lambda t: t.update({f"x.{i}.weight": np.ones((512, 4096), np.float32) for i in range(6)}))
    examine(path)
    tracemalloc.start()
    examine(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24e6 < sum(f.stat().st_size for f in path.iterdir())
