"""What is written as GPTQ and AWQ: the bytes of the libraries' own packing, the numbers that were there, and refusals where they cannot be held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers.utils.quantization_config import AwqConfig, GPTQConfig

from octavo.checkpoints import open_checkpoint
from octavo.checkpoints._quantized import DTYPES
from octavo.checkpoints.awq import CODEC as AWQ
from octavo.checkpoints.base import InexactError, Writer, WriterOptions
from octavo.checkpoints.gptq import CODEC as GPTQ
from octavo.errors import UsageError
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

from .int_files import AT, write

GOLDEN = {method: load_file(Path(__file__).parent / "golden" / f"{method}.safetensors") for method in ("gptq", "awq")}
NAME = f"{AT}.weight"


def filled(writer: Writer, tensor: QTensor, step: int = 512) -> dict[str, np.ndarray]:
    """What the writer makes of a weight, given in pieces."""
    rows = tensor.shape[0]
    assert writer.why_not(NAME, tensor.spec, tensor.shape) is None
    out = {name: np.zeros(part.shape, DTYPES[part.dtype]) for name, part in writer.parts(NAME, tensor.spec, tensor.shape).items()}
    for first in range(0, rows, step):
        part = slice(first, first + step)
        cut = [None if a is None else a if len(a) == 1 and tensor.spec.granularity == "tensor" else a[part] for a in (tensor.scales, tensor.zeros)]
        piece = QTensor(tensor.codes[part], cut[0], tensor.spec, tensor.codes[part].shape, zeros=cut[1], offsets=tensor.offsets, order=tensor.order,
                        factors=tensor.factors)
        for _ in range(2):  # twice gives the same
            writer.fill(NAME, piece, first, out)
    return out


def again(tmp_path: Path, writer: Writer, tensor: QTensor, step: int = 512) -> tuple[QTensor, dict[str, Any]]:
    """(the weight as it reads back, the config)."""
    config = writer.config({NAME: tensor.spec}, ["model.embed_tokens.weight", "model.layers.0.mlp.gate.weight"])
    checkpoint = open_checkpoint(write(tmp_path / "m", filled(writer, tensor, step), config["quantization_config"]))
    assert not checkpoint.notes
    return checkpoint.read(NAME), config["quantization_config"]


@pytest.mark.parametrize("case", sorted({name.rpartition(".")[0] for name in GOLDEN["gptq"]}))
def test_bytes_of_gptqmodel(case: str, tmp_path: Path) -> None:
    bits, kind, version = case.split(".")
    symmetric = kind in ("symmetric", "channel")
    parts = {f"{AT}.{part}": GOLDEN["gptq"][f"{case}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}
    source = write(tmp_path / "s", parts, {"quant_method": "gptq", "bits": int(bits), "group_size": -1 if kind == "channel" else 32, "sym": symmetric,
                                           "desc_act": kind == "ordered", "checkpoint_format": "gptq" if version == "v1" else "gptq_v2",
                                           "meta": {"quantizer": ["gptqmodel:7.7.0"]}})
    tensor = open_checkpoint(source).read(NAME)
    writer = GPTQ.writer(WriterOptions(f"{version if symmetric else 'v2'}+act-order", specs={NAME: tensor.spec}))
    expected = parts if symmetric or version == "v2" else {f"{AT}.{part}": GOLDEN["gptq"][f"{bits}.{kind}.v2.{part}"] for part in
                                                         ("qweight", "qzeros", "scales", "g_idx")}
    for name, array in filled(writer, tensor).items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype
    back, config = again(tmp_path, writer, tensor)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
    assert back.spec == tensor.spec and config["bits"] == int(bits) and config["group_size"] == (-1 if kind == "channel" else 32)


@pytest.mark.parametrize("kind", ["g32", "g64", "mid", "g128"])
def test_bytes_of_autoawq(kind: str, tmp_path: Path) -> None:
    size = {"g32": 32, "g64": 64, "mid": 32, "g128": 128}[kind]
    parts = {f"{AT}.{part}": GOLDEN["awq"][f"{kind}.{part}"] for part in ("qweight", "qzeros", "scales")}
    tensor = open_checkpoint(write(tmp_path / "s", parts, {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"})).read(NAME)
    writer = AWQ.writer(WriterOptions(specs={NAME: tensor.spec}))
    for name, array in filled(writer, tensor).items():
        np.testing.assert_array_equal(array, parts[name])
        assert array.dtype == parts[name].dtype
    back, _ = again(tmp_path, writer, tensor)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "granularity"), [(2, "group"), (3, "group"), (4, "group"), (8, "group"), (4, "channel"), (8, "channel"), (8, "tensor")])
def test_round_trip_in_pieces(bits: int, granularity: str, symmetric: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(bits).standard_normal((1120, 96)).astype(np.float32)
    spec = TensorSpec(f"int{bits}", granularity, 32 if granularity == "group" else 0, symmetric=symmetric, scale_format="fp16")
    tensor = quantize(x, spec)
    for codec in (GPTQ, AWQ) if bits == 4 else (GPTQ,):
        writer = codec.writer(WriterOptions(specs={NAME: spec}))
        back, config = again(tmp_path, writer, tensor)
        np.testing.assert_array_equal(back.codes, tensor.codes)
        np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
        if codec is GPTQ:
            assert config["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2") and config["sym"] == symmetric and not config["desc_act"]
            assert list(config["dynamic"]) == [r"-:^model\.layers\.0\.mlp\.gate$"]
            GPTQConfig.from_dict(dict(config))
        else:
            assert config["modules_to_not_convert"] == ["model.layers.0.mlp.gate"]
            AwqConfig.from_dict(dict(config))


def test_mixed_widths_and_kept_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    specs = {f"model.layers.{i}.mlp.up_proj.weight": TensorSpec(f"int{bits}", "group", size, scale_format="fp16")
             for i, (bits, size) in enumerate([(4, 32), (8, 64), (4, 32), (2, 16)])}
    writer = GPTQ.writer(WriterOptions(specs=specs))
    stored, numbers = {}, {}
    for name, spec in specs.items():
        tensor = quantize(rng.standard_normal((64, 64)).astype(np.float32), spec)
        numbers[name] = tensor.dequantize()
        stored |= {part.replace(AT, name.removesuffix(".weight")): array for part, array in filled(writer, tensor).items()}
    config = writer.config(specs, ["lm_head.weight"])["quantization_config"]
    assert (config["bits"], config["group_size"], len(config["dynamic"])) == (4, 32, 2)
    checkpoint = open_checkpoint(write(tmp_path / "m", stored, config))
    for name, expected in numbers.items():
        np.testing.assert_array_equal(checkpoint.read(name).dequantize(), expected)


GROUP = TensorSpec("int4", "group", 32, scale_format="fp16")


@pytest.mark.parametrize(("spec", "shape", "reason"), [
    (TensorSpec("int5", "group", 32, scale_format="fp16"), (64, 64), "bits"), (TensorSpec("nf4", "group", 64, scale_format="fp16"), (64, 64), "bits"),
    (TensorSpec("int4", "block", 32, 32), (64, 64), "blocks"), (GROUP, (60, 64), "multiples of 32"), (GROUP, (64, 72), "multiples of 32"),
    (TensorSpec("int4", "group", 128, scale_format="fp16"), (64, 192), "divide"), (TensorSpec("bf16"), (64, 64), "bits")])
def test_refused_by_spec(spec: TensorSpec, shape: tuple[int, int], reason: str) -> None:
    for codec in (GPTQ, AWQ):
        writer = codec.writer(WriterOptions(config={"hidden_size": 64, "intermediate_size": 192}))
        assert reason in str(writer.why_not(NAME, spec, shape))
        nearest = writer.nearest(NAME, spec, (64, shape[1]))
        assert nearest.scale_format == "fp16" and (shape[1] % 32 or writer.why_not(NAME, nearest, (64, shape[1])) is None)


def test_one_group_size_and_versions() -> None:
    writer = AWQ.writer(WriterOptions(specs={"a": GROUP}))
    assert "one group size" in str(writer.why_not(NAME, TensorSpec("int4", "group", 64, scale_format="fp16"), (64, 128)))
    assert "4 bits" in str(writer.why_not(NAME, TensorSpec("int8", "channel"), (64, 128)))
    v1 = GPTQ.writer(WriterOptions("v1"))
    assert "gptq:v2" in str(v1.why_not(NAME, TensorSpec("int4", "group", 32, symmetric=False), (64, 64)))
    assert v1.nearest(NAME, TensorSpec("int4", "group", 32, symmetric=False), (64, 64)).symmetric
    assert AWQ.writer(WriterOptions(config={"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "head_dim": 64})).size == 64
    for codec, variant in ((GPTQ, "v3"), (GPTQ, "v1+v2"), (AWQ, "gemv")):
        with pytest.raises(UsageError, match="known"):
            codec.writer(WriterOptions(variant))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"scales": np.full((32, 2), 1e-9, np.float32)}, "float16"), ({"scales": np.full((32, 2), 1e6, np.float32)}, "float16"),
    ({"order": np.arange(64, dtype=np.int32)[::-1]}, "permuted"), ({"factors": np.ones(64, np.float32)}, "scaled"),
    ({"zeros": np.full((32, 2), 1.5, np.float32)}, "whole"), ({"zeros": np.full((32, 2), 16, np.float32)}, "whole"),
    ({"zeros": None, "offsets": np.zeros((32, 2), np.float32)}, "offsets")])
def test_refused_by_numbers(changes: dict[str, Any], reason: str) -> None:
    spec = TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16")
    parts = {"codes": np.zeros((32, 64), np.uint8), "scales": np.ones((32, 2), np.float32), "spec": spec, "shape": (32, 64),
             "zeros": np.ones((32, 2), np.float32), **changes}
    for codec in (GPTQ, AWQ):
        with pytest.raises(InexactError, match=reason):
            filled(codec.writer(WriterOptions(specs={NAME: spec})), QTensor(**parts))


def test_bfloat16_scales_that_float16_holds(tmp_path: Path) -> None:
    tensor = quantize(np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32), TensorSpec("int4", "group", 32, scale_format="bf16"))
    back, _ = again(tmp_path, GPTQ.writer(WriterOptions(specs={NAME: tensor.spec})), tensor)
    np.testing.assert_array_equal(back.dequantize(), tensor.dequantize())
