"""ModelOpt's exports: golden files by the library itself (make_modelopt.py), and what is written, opened again.

The library cannot be among the tests' dependencies (it needs an older transformers), hence golden files: what ModelOpt 0.47.0 exports of small layers,
and the weights that its own quantizers (or, where those need a GPU, its tensors' dequantize) compute with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from octavo.checkpoints import Checkpoint, WriterOptions, open_checkpoint
from octavo.checkpoints.modelopt import CODEC
from octavo.checkpoints.nvfp4 import CODEC as NVFP4
from octavo.errors import CheckpointError, UsageError
from octavo.qtensor import quantize
from octavo.schemes import TensorSpec

from .quantized_folder import reopened, write_folder

GOLDEN = Path(__file__).with_name("golden") / "modelopt.safetensors"
W = "q_proj.weight"
with safe_open(GOLDEN, "pt") as file:
    CONFIGS: dict[str, dict[str, Any]] = json.loads(file.metadata()["configs"])
EXACT = {"nvfp4", "nvfp4_awq", "nvfp4_weights", "nvfp4_fp8", "mxfp4_fp8", "mxfp8"}


def golden(kind: str) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    tensors = {name.removeprefix(f"{kind}/"): tensor for name, tensor in load_file(GOLDEN).items() if name.startswith(f"{kind}/")}
    return tensors, tensors.pop("expected").numpy()


def folder(path: Path, kind: str, form: str = "both") -> Path:
    """hf_quant_config.json, config.json's quantization_config, or both, as the library writes them."""
    said = CONFIGS[kind]
    return write_folder(path, golden(kind)[0], said["quantization_config"] if form != "file" else None,
                        **({"hf_quant_config": said["hf_quant_config"]} if form != "config" else {}))


@pytest.mark.parametrize("form", ["both", "file", "config"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_numbers_are_the_librarys(kind: str, form: str, tmp_path: Path) -> None:
    _, expected = golden(kind)
    checkpoint = open_checkpoint(folder(tmp_path, kind, form))
    assert checkpoint.codec == "modelopt" and list(checkpoint.tensors) == [W]
    tensor = checkpoint.read(W)
    if tensor.factors is not None:  # the library multiplies the inputs by them, its weights are without
        expected = expected * np.asarray(tensor.factors)
    if kind in EXACT:
        assert np.array_equal(tensor.dequantize(), expected)
    else:  # fake quantization multiplies by the reciprocal of the scale: the last bit of float32
        np.testing.assert_allclose(tensor.dequantize(), expected, rtol=1e-6, atol=0)
    rows = tensor.shape[0]
    if tensor.spec.granularity not in ("tensor", "block"):
        for first, last in ((0, 1), (3, 8), (rows - 1, rows)):
            assert np.array_equal(checkpoint.read(W, slice(first, last)).dequantize(), tensor.dequantize()[first:last])


ACTIVATIONS = {"fp8": ("fp8e4m3", False), "fp8_rows": ("fp8e4m3", True), "nvfp4": ("nvfp4", True), "nvfp4_weights": None, "int8": None, "fp8_blocks": None,
               "int8_smooth": ("int8", False), "int4_awq": None, "int4_awq_fp8": ("fp8e4m3", False), "mxfp8": ("mxfp8", True)}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str, tmp_path: Path) -> None:
    info = open_checkpoint(folder(tmp_path, kind)).tensors[W]
    assert (info.activation and (info.activation.format, info.activation.dynamic)) == ACTIVATIONS[kind]


def bytes_of(path: Path) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {name: (t.dtype, tuple(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes() if t.ndim else t.numpy().tobytes())
            for name, t in load_file(path / "model.safetensors").items()}


@pytest.mark.parametrize("kind", ["fp8", "fp8_rows", "fp8_blocks", "int8", "int4_awq", "nvfp4", "nvfp4_weights", "mxfp8"])
def test_round_trip_is_byte_exact(kind: str, tmp_path: Path) -> None:
    source = open_checkpoint(folder(tmp_path / "a", kind))
    again = reopened(source, CODEC, tmp_path / "b")
    before, after = bytes_of(tmp_path / "a"), bytes_of(tmp_path / "b")
    if kind == "fp8_blocks":  # [n, 1, k, 1], which is the same bytes
        before = {name: (dtype, after[name][1], data) for name, (dtype, _, data) in before.items()}
    assert before == after
    said = json.loads((again.path / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == CONFIGS[kind]["hf_quant_config"]["quantization"]["quant_algo"].upper()


def test_mixed_precision(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    layers: dict[str, dict[str, Any]] = {}
    for kind in ("fp8", "nvfp4", "int4_awq"):
        tensors |= {f"model.{kind}.{name}": tensor for name, tensor in golden(kind)[0].items()}
        said = CONFIGS[kind]["hf_quant_config"]["quantization"]
        layers[f"model.{kind}.q_proj"] = {key: said[key] for key in ("quant_algo", "group_size") if key in said}
    quantization = {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": None, "quantized_layers": layers}
    source = open_checkpoint(write_folder(tmp_path / "a", tensors, None, hf_quant_config={"quantization": quantization}))
    again = reopened(source, CODEC, tmp_path / "b")
    for checkpoint in (source, again):
        assert [i.spec.format for i in checkpoint.tensors.values() if i.spec] == ["fp8e4m3", "int4", "nvfp4"]
    for name in source.tensors:
        assert np.array_equal(source.read(name).dequantize(), again.read(name).dequantize())
    del layers["model.fp8.q_proj"]
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: quantized_layers does not list module 'model\.fp8\.q_proj', which has scales"):
        open_checkpoint(write_folder(tmp_path / "c", tensors, None, hf_quant_config={"quantization": quantization}))


def test_scales_of_the_cache(tmp_path: Path) -> None:
    at = "model.layers.0.self_attn"
    tensors = {f"{at}.{name}": tensor for name, tensor in golden("fp8")[0].items()}
    tensors |= {f"{at}.k_proj.k_scale": torch.tensor(0.25), f"{at}.v_proj.v_scale": torch.tensor(0.5)}
    quantization = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}, "ignore": []}
    source = open_checkpoint(write_folder(tmp_path / "a", tensors, quantization))
    again = reopened(source, CODEC, tmp_path / "b")
    for checkpoint in (source, again):
        assert checkpoint.cache == TensorSpec("fp8e4m3", "tensor") and "2 stored scales of the key-value cache" in checkpoint.notes[0]
        assert {k: v.item() for k, v in checkpoint.cache_scales().items()} == {f"{at}.k": 0.25, f"{at}.v": 0.5}  # type: ignore[attr-defined]
    unknown = open_checkpoint(write_folder(tmp_path / "c", tensors, {**quantization, "kv_cache_scheme": "INT3"}))
    assert unknown.cache is None and "is not known: the cache stays in 16 bits" in unknown.notes[-1]


def test_one_scale_becomes_one_per_row_where_inputs_have_none(tmp_path: Path) -> None:
    tensors, _ = golden("fp8")
    del tensors["q_proj.input_scale"]
    source = open_checkpoint(write_folder(tmp_path / "a", tensors, CONFIGS["fp8"]["quantization_config"]))
    assert source.tensors[W].activation is None
    again = reopened(source, CODEC, tmp_path / "b")
    assert again.tensors[W].stored == "modelopt FP8_PER_CHANNEL_PER_TOKEN" and np.array_equal(again.read(W).dequantize(), source.read(W).dequantize())


def plain(path: Path, x: np.ndarray, spec: TensorSpec) -> Checkpoint:
    """Numbers that Octavo quantized, written as nvfp4 and opened."""
    options = WriterOptions(specs={W: spec})
    writer = (NVFP4 if spec.format == "nvfp4" else CODEC).writer(options)
    tensor = quantize(x, spec)
    arrays = {name: np.zeros(part.shape, {"U8": "u1", "F8_E4M3": "u1", "F32": "f4"}[part.dtype]) for name, part in writer.parts(W, spec, x.shape).items()}
    writer.fill(W, tensor, 0, arrays)
    types = {name: part.dtype for name, part in writer.parts(W, spec, x.shape).items()}
    tensors = {name: torch.from_numpy(array).view(torch.float8_e4m3fn if types[name] == "F8_E4M3" else torch.from_numpy(array).dtype)
               for name, array in arrays.items()}
    checkpoint = open_checkpoint(write_folder(path, tensors, writer.config({W: spec}, [])["quantization_config"]))
    assert np.array_equal(checkpoint.read(W).dequantize(), tensor.dequantize())
    return checkpoint


@pytest.mark.parametrize("spec", [TensorSpec("nvfp4", "group", 16, scale_format="fp8e4m3"), TensorSpec("mxfp8", "group", 32, scale_format="e8m0")])
def test_what_octavo_quantizes(spec: TensorSpec, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, scale in enumerate((1.0, 0.0, 1e-20, 1e20)):
        plain(tmp_path / str(i), (rng.standard_normal((6, 96)) * scale).astype(np.float32), spec)


def test_variants() -> None:
    with pytest.raises(UsageError, match="unknown algorithm 'int3' of ModelOpt"):
        CODEC.writer(WriterOptions("int3"))
    writer = CODEC.writer(WriterOptions("w4a16_awq"))
    assert writer.nearest(W, TensorSpec("bf16"), (8, 576)) == TensorSpec("int4", "group", 64)
    assert "w4a16_awq holds int4" in str(writer.why_not(W, TensorSpec("int8", "channel"), (8, 8)))
    assert CODEC.writer(WriterOptions()).nearest(W, TensorSpec("bf16"), (8, 100)).format == "fp8e4m3"


HOSTILE: dict[str, tuple[str, dict[str, Any], dict[str, torch.Tensor], str]] = {
    "algorithm": ("fp8", {"quant_algo": "FP3"}, {}, "the algorithm 'FP3' is not known"),
    "none": ("fp8", {"quant_algo": None}, {}, "names no quant_algo, but module 'q_proj' has scales"),
    "svd": ("nvfp4", {"quant_algo": "NVFP4_SVD"}, {}, "SVDQuant adds a product of two matrices"),
    "lora": ("nvfp4", {}, {"q_proj.svdquant_lora_a": torch.zeros(2, 128)}, "svdquant_lora_a' adds a product"),
    "group": ("nvfp4", {"group_size": "16"}, {}, "group_size is '16'"),
    "group of 24": ("nvfp4", {"group_size": 24}, {}, "in groups of 24 are no multiple of 16"),
    "group of 64": ("int4_awq", {"group_size": 64}, {}, "which are no groups of 64"), "negative": ("nvfp4", {"group_size": -16}, {}, "group_size is '-16'"),
    "exclude": ("fp8", {"ignore": "lm_head"}, {}, "exclude_modules is no list"),
    "scale": ("nvfp4", {}, {"q_proj.weight_scale": torch.ones(32, 7).to(torch.float8_e4m3fn)}, r"weight_scale' has shape \[32, 7\]"),
    "scale type": ("nvfp4", {}, {"q_proj.weight_scale": torch.ones(32, 8)}, "is of type F32, expected F8_E4M3"),
    "second": ("nvfp4", {}, {"q_proj.weight_scale_2": torch.ones(2)}, "weight_scale_2' holds more than one"),
    "rows": ("fp8_rows", {}, {"q_proj.weight_scale": torch.ones(31)}, "expected one scale or 32"),
    "weight": ("fp8", {}, {"q_proj.weight": torch.ones(32, 128)}, "weight' is of type F32, expected F8_E4M3"),
    "smoothing": ("int4_awq", {}, {"q_proj.pre_quant_scale": torch.ones(127)}, r"pre_quant_scale' has shape \[127\], expected \[128\]"),
    "inputs": ("fp8", {}, {"q_proj.input_scale": torch.ones(2)}, "input_scale' holds more than one scale"),
    "NaN": ("nvfp4", {}, {"q_proj.weight_scale_2": torch.tensor(torch.nan)}, "weight' holds NaN or infinity"),
    "blocks": ("fp8_blocks", {}, {"q_proj.weight_scale": torch.ones(3, 1)}, r"has shape \[3, 1\], expected \[2, 1\]"),
    "mixed": ("fp8", {"quant_algo": "MIXED_PRECISION", "quantized_layers": []}, {}, "has no quantized_layers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_ones(case: str, tmp_path: Path) -> None:
    kind, changes, parts, message = HOSTILE[case]
    path = write_folder(tmp_path, golden(kind)[0] | parts, CONFIGS[kind]["quantization_config"] | changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path).read(W)
    assert str(caught.value).count("\n") == 0


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    path = write_folder(tmp_path, golden("fp8")[0], CONFIGS["fp8"]["quantization_config"], hf_quant_config=CONFIGS["nvfp4"]["hf_quant_config"])
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: quant_algo is 'NVFP4', in config\.json it is 'FP8'"):
        open_checkpoint(path)
    excluded = CONFIGS["fp8"]["quantization_config"] | {"ignore": ["q_*"]}
    assert "excludes from quantization are quantized" in open_checkpoint(write_folder(tmp_path / "b", golden("fp8")[0], excluded)).notes[0]


def test_codes_without_scales_are_refused(tmp_path: Path) -> None:
    for kind in ("fp8", "nvfp4", "int8"):
        path = write_folder(tmp_path / kind, {W: golden(kind)[0][W]}, CONFIGS[kind]["quantization_config"])
        with pytest.raises(CheckpointError, match="is quantized, but no scales"):
            open_checkpoint(path)
