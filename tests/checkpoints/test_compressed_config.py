"""Configs of compressed-tensors: which layers they name, what older ones look like, and that config and tensors agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.utils.match import match_name
from hypothesis import given
from hypothesis import strategies as st

from octavo.checkpoints import WriterOptions, open_checkpoint
from octavo.checkpoints._compressed_config import Target, number_format, read_settings
from octavo.checkpoints._patterns import compiled
from octavo.checkpoints.compressed_tensors import CODEC
from octavo.errors import CheckpointError, UsageError
from octavo.schemes import TensorSpec

from .quantized_folder import Q, write_folder
from .test_compressed_tensors import arguments, compressed, config_of, stored

INT8 = arguments(num_bits=8, strategy="channel")
PARTS = st.sampled_from(["model", "layers", "0", "1", "12", "self_attn", "mlp", "experts", "q_proj", "k_proj", "gate", "gate_proj", "lm_head"])
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(".".join)
PIECES = st.sampled_from([r"\.", ".*", "[qk]_proj", "(q|k)_proj", r"layers\.(0|1)\.", "mlp", "lm_head", "$", "^", r"\d+", "experts", "gate$",
                          "(?:gate|up)_proj"])
EXPRESSIONS = st.lists(PIECES, min_size=1, max_size=5).map(lambda pieces: "re:" + "".join(pieces))


@given(name=NAMES, target=st.one_of(NAMES, EXPRESSIONS))
def test_names_are_matched_as_the_library_does(name: str, target: str) -> None:
    ours = Target(target, compiled(target[3:]) if target.startswith("re:") else None)
    assert (ours.rank(name) in (0, 1)) == match_name(name, target)


def settings(groups: dict[str, Any], ignore: list[str]) -> Any:
    groups = {name: {"targets": targets, "weights": INT8} for name, targets in groups.items()}
    return read_settings({"format": "int-quantized", "config_groups": groups, "ignore": ignore}, "config.json")


def test_the_narrowest_target_wins() -> None:
    found = settings({"all": ["Linear"], "attention": ["re:.*self_attn.*"], "one": [Q]}, ["lm_head"])
    assert found.group(Q).name == "one" and found.group(Q.replace("q_proj", "k_proj")).name == "attention"
    assert found.group("model.layers.0.mlp.up_proj").name == "all" and found.group("lm_head") is None


def test_names_within_a_larger_model() -> None:
    """A vision model's config names modules of the model, its files name tensors: what stands in front of both may differ."""
    found = settings({"all": ["Linear"]}, ["model.vision_tower.layers.0.q_proj", "re:visual.*", "lm_head"])
    for name in ("vision_tower.layers.0.q_proj", "model.visual.layers.0.q_proj", "language_model.lm_head"):
        assert found.expected(name) is None, name
    assert found.expected("model.layers.0.self_attn.q_proj") is not None
    named = settings({"one": ["language_model.layers.0.self_attn.q_proj"]}, [])
    assert named.group("model.language_model.layers.0.self_attn.q_proj").name == "one" and named.group("model.layers.0.mlp.up_proj") is None


def test_routers_may_stay_unquantized_where_only_a_class_is_named(tmp_path: Path) -> None:
    state, _ = compressed("int-quantized", torch.randn(32, 64), INT8)
    tensors = {f"{Q}.{name}": tensor for name, tensor in state.items()} | {"model.layers.0.mlp.gate.weight": torch.ones(4, 64)}
    open_checkpoint(write_folder(tmp_path / "class", tensors, config_of("int-quantized", INT8)))
    quantization = config_of("int-quantized", INT8)
    quantization["config_groups"]["group_0"]["targets"] = ["re:.*"]
    with pytest.raises(CheckpointError, match=r"mlp\.gate\.weight' is not quantized"):
        open_checkpoint(write_folder(tmp_path / "named", tensors, quantization))


@pytest.mark.parametrize("older", [
    lambda q: {"compression_config": q}, lambda q: {"compression_config": {"quantization_config": q, "sparsity_config": {"format": "dense"}}},
    lambda q: {"quantization_config": {**q, "quant_method": "sparseml"}}, lambda q: {"text_config": {"quantization_config": q}},
    lambda q: {"quantization_config": {key: value for key, value in q.items() if key != "quant_method"}},
])
def test_older_places_and_names(older: Any, tmp_path: Path) -> None:
    state, expected = compressed("int-quantized", torch.randn(32, 64), INT8)
    folder = stored(tmp_path, "int-quantized", state, INT8)
    (folder / "config.json").write_text(json.dumps({"model_type": "test", **older(config_of("int-quantized", INT8))}))
    np.testing.assert_array_equal(open_checkpoint(folder).read(f"{Q}.weight").dequantize(), expected.numpy())


def test_older_sparse_configs_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {f"{Q}.compressed": torch.ones(8), f"{Q}.bitmask": torch.ones(8, dtype=torch.uint8)}, None)
    (folder / "config.json").write_text(json.dumps({"compression_config": {"sparsity_config": {"format": "sparse-bitmask"}}}))
    with pytest.raises(CheckpointError, match=r"sparse-bitmask.*dense model"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("given", "form"), [
    ({"strategy": None, "group_size": -1}, "int-quantized"), ({"strategy": "CHANNEL", "type": "INT"}, "int-quantized"),
])
def test_what_the_library_infers(given: dict[str, Any], form: str, tmp_path: Path) -> None:
    state, expected = compressed(form, torch.randn(32, 64), INT8)
    checkpoint = open_checkpoint(stored(tmp_path, form, state, INT8 | given))
    np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected.numpy())


def test_the_format_names_the_numbers() -> None:
    assert number_format({"num_bits": 8, "type": "float", "group_size": 32}, "", "mxfp8-quantized") == "mxfp8"
    assert number_format({"num_bits": 4, "type": "float", "group_size": 32}, "") == "mxfp4"
    with pytest.raises(CheckpointError, match="pack-quantized, which does not hold fp8e4m3"):
        read_settings({"format": "pack-quantized", "config_groups": {"g": {"targets": ["Linear"], "weights": arguments(num_bits=8, type="float")}}}, "")


def test_transforms(tmp_path: Path) -> None:
    state, _ = compressed("int-quantized", torch.randn(32, 64), INT8)
    folded = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": "weight_output"}]}}}
    open_checkpoint(stored(tmp_path / "folded", "int-quantized", state, INT8, transform_config=folded))
    running = {"config_groups": {**folded["config_groups"], "R4": {"type": "hadamard", "apply": [{"targets": ["re:.*down_proj$"], "location": "input"}]}}}
    with pytest.raises(CheckpointError, match=r"at run time.*'R4'"):
        open_checkpoint(stored(tmp_path / "running", "int-quantized", state, INT8, transform_config=running))


def test_stored_scales_of_inputs_must_be_there(tmp_path: Path) -> None:
    state, _ = compressed("int-quantized", torch.randn(32, 64), INT8)
    quantization = config_of("int-quantized", INT8)
    quantization["config_groups"]["group_0"] |= {"input_activations": arguments(num_bits=8, strategy="tensor"), "output_activations": INT8}
    tensors = {f"{Q}.{name}": tensor for name, tensor in state.items()}
    with pytest.raises(CheckpointError, match="input_scale' is missing"):
        open_checkpoint(write_folder(tmp_path / "without", tensors, quantization))
    checkpoint = open_checkpoint(write_folder(tmp_path / "with", tensors | {f"{Q}.input_scale": torch.ones(1)}, quantization))
    assert not checkpoint.tensors[f"{Q}.weight"].activation.dynamic  # type: ignore[union-attr]
    assert any("output_activations" in note for note in checkpoint.notes)


@pytest.mark.parametrize(("form", "args", "part", "value"), [
    ("mxfp4-pack-quantized", arguments(type="float", strategy="group", group_size=32, scale_dtype="torch.uint8"), "weight_scale", 255),
    ("nvfp4-pack-quantized", arguments(type="float", strategy="tensor_group", group_size=16), "weight_scale", float("nan")),
    ("nvfp4-pack-quantized", arguments(type="float", strategy="tensor_group", group_size=16), "weight_global_scale", float("inf")),
    ("nvfp4-pack-quantized", arguments(type="float", strategy="tensor_group", group_size=16), "weight_global_scale", 0.0),
    ("float-quantized", arguments(num_bits=8, type="float", strategy="channel"), "weight_scale", float("inf")),
])
def test_scales_that_are_no_numbers(form: str, args: dict[str, Any], part: str, value: float, tmp_path: Path) -> None:
    state, _ = compressed(form, torch.randn(32, 64), args)
    state[part] = torch.full_like(state[part], value)
    with pytest.raises(CheckpointError, match=r"NaN or infinity|no number above 0"):
        open_checkpoint(stored(tmp_path, form, state, args)).read(f"{Q}.weight")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (33, 95), (7, 129)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_odd_shapes(bits: int, shape: tuple[int, int], symmetric: bool, tmp_path: Path) -> None:
    args = arguments(num_bits=bits, strategy="channel", symmetric=symmetric)
    state, expected = compressed("pack-quantized", torch.randn(shape, generator=torch.Generator().manual_seed(bits)), args)
    np.testing.assert_array_equal(open_checkpoint(stored(tmp_path, "pack-quantized", state, args)).read(f"{Q}.weight").dequantize(), expected.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_scales(dtype: torch.dtype, tmp_path: Path) -> None:
    """The library multiplies in the type of its scales; the exact product, rounded to it, is the same number."""
    args = arguments(strategy="group", group_size=32, symmetric=False)
    state, expected = compressed("pack-quantized", torch.randn(48, 128).to(dtype), args)
    assert state["weight_scale"].dtype == dtype
    found = open_checkpoint(stored(tmp_path, "pack-quantized", state, args)).read(f"{Q}.weight").dequantize()
    assert torch.equal(torch.from_numpy(found).to(dtype).float(), expected)


def test_inputs_that_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="stores a scale of the inputs of"):
        CODEC.writer(WriterOptions(activations={"a.weight": TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3", dynamic=True)}))
    with pytest.raises(UsageError, match="no inputs in fp8e5m2"):
        CODEC.writer(WriterOptions(activations={"a.weight": TensorSpec("fp8e5m2", "token", dynamic=True)}))
    writer = CODEC.writer(WriterOptions(config={"torch_dtype": "bfloat16"}))
    assert writer.nearest("a.weight", TensorSpec("bf16"), (64, 192)) == TensorSpec("int4", "group", 64, scale_format="bf16")
    nvfp4, zeros = TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3"), TensorSpec("int5", "group", 32, symmetric=False, scale_format="bf16")
    assert writer.nearest("a.weight", nvfp4, (64, 192)) == nvfp4 and writer.nearest("a.weight", zeros, (64, 256)) == zeros


def older(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Words that hold as many whole values as fit, as until June 2026 (commit 66e631f): [rows, count] of unsigned values."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(values.to(torch.int64), (0, -values.shape[1] % per_word)).reshape(len(values), -1, per_word)
    whole = (padded << (torch.arange(per_word) * bits)).sum(2)
    return torch.where(whole >= 2**31, whole - 2**32, whole).to(torch.int32)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("shape", [(40, 192), (33, 192), (192, 32), (96, 96)])
def test_folders_in_the_older_packing(bits: int, shape: tuple[int, int], tmp_path: Path) -> None:
    """Codes along the rows, zero points down the columns, both with unused bits: the numbers of the dense packing."""
    args = arguments(num_bits=bits, strategy="group", group_size=32, symmetric=False)
    state, expected = compressed("pack-quantized", torch.randn(shape, generator=torch.Generator().manual_seed(bits)), args)
    middle = 1 << (bits - 1)
    state["weight_packed"] = older(unpack_from_int32(state["weight_packed"], bits, torch.Size(shape)).to(torch.int64) + middle, bits)
    zeros = unpack_from_int32(state["weight_zero_point"], bits, torch.Size((shape[0], shape[1] // 32)), packed_dim=0).to(torch.int64) + middle
    state["weight_zero_point"] = older(zeros.T, bits).T
    checkpoint = open_checkpoint(stored(tmp_path, "pack-quantized", state, args))
    np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected.numpy())
