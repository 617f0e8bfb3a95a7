"""compressed-tensors against the library itself: what its compressors write is read to the bit, in every format, width and strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from octavo.checkpoints import WriterOptions, open_checkpoint
from octavo.checkpoints._compressed_layers import _unpacked, packing
from octavo.checkpoints.base import InexactError
from octavo.checkpoints.compressed_tensors import CODEC
from octavo.errors import CheckpointError, UsageError
from octavo.qtensor import QTensor, quantize
from octavo.schemes import TensorSpec

from .quantized_folder import CODES, DTYPES, Q, write_folder, written


def arguments(**given: Any) -> dict[str, Any]:
    return QuantizationArgs(**{"num_bits": 4, "type": "int", "symmetric": True, "strategy": "channel", **given}).model_dump(mode="json")


def scales_of(weight: torch.Tensor, args: QuantizationArgs) -> dict[str, torch.Tensor]:
    """Scales (and zero points) as a plain absmax rounding gives them; which ones does not matter here."""
    rows, columns = weight.shape
    strategy = str(args.strategy)
    size = {"channel": columns, "tensor": columns}.get(strategy, args.group_size or columns)
    if strategy == "block":
        r, c = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -columns % c, 0, -rows % r))
        cells = padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c).abs().amax((1, 3))
        return {"weight_scale": (cells / 448).clamp(min=1e-6)}
    cells = torch.nn.functional.pad(weight, (0, -columns % size)).reshape(rows, -1, size)
    low, high = cells.amin(2).clamp(max=0), cells.amax(2).clamp(min=0)
    if strategy == "tensor":
        low, high = low.amin().reshape(1), high.amax().reshape(1)
    largest = torch.maximum(high, -low).clamp(min=1e-6)
    if args.type == "float":
        top = 448.0 if args.num_bits == 8 else 6.0
        if args.scale_dtype == torch.uint8:
            return {"weight_scale": 2.0 ** torch.floor(torch.log2(largest / top))}
        if args.num_bits == 4:
            whole = torch.tensor([448.0 * 6.0]) / weight.abs().max().clamp(min=1e-6)
            return {"weight_global_scale": whole, "weight_scale": (largest / 6.0 * whole).to(torch.float8_e4m3fn).float().clamp(min=2**-6)}
        return {"weight_scale": largest / top}
    if args.symmetric:
        return {"weight_scale": largest / (2 ** (args.num_bits - 1) - 0.5)}
    scale = ((high - low) / (2**args.num_bits - 1)).clamp(min=1e-6)
    zero = torch.clamp(torch.round(-low / scale) - 2 ** (args.num_bits - 1), -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1)
    return {"weight_scale": scale, "weight_zero_point": zero.to(torch.int8)}


def compressed(form: str, weight: torch.Tensor, args: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(the library's tensors, what it takes them for)."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form)
    kind = BaseCompressor.get_value_from_registry(form)
    state = kind.compress({"weight": weight, **scales_of(weight, scheme.weights)}, scheme)
    if form == "nvfp4-pack-quantized":  # its decompressor rounds to bfloat16: the same steps in float32
        codes = unpack_fp4_from_uint8(state["weight_packed"], weight.shape[0], weight.shape[1], dtype=torch.float32)
        return state, dequantize(codes, state["weight_scale"].float(), args=scheme.weights, global_scale=state["weight_global_scale"], dtype=torch.float32)
    return state, kind.decompress(dict(state), scheme)["weight"].float()


def config_of(form: str, args: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": args, "input_activations": None}}, **more}


def stored(path: Path, form: str, state: dict[str, torch.Tensor], args: dict[str, Any], **more: Any) -> Path:
    return write_folder(path, {f"{Q}.{name}": tensor for name, tensor in state.items()}, config_of(form, args, **more))


KINDS = [
    *(("pack-quantized", arguments(num_bits=bits, strategy="group", group_size=32, symmetric=even)) for bits in range(2, 9) for even in (True, False)),
    *(("pack-quantized", arguments(num_bits=bits, strategy="channel", symmetric=even)) for bits in (3, 4, 8) for even in (True, False)),
    ("int-quantized", arguments(num_bits=8, strategy="channel")), ("int-quantized", arguments(num_bits=8, strategy="tensor")),
    ("int-quantized", arguments(num_bits=8, strategy="channel", symmetric=False)), ("naive-quantized", arguments(num_bits=4, strategy="group", group_size=32)),
    ("float-quantized", arguments(num_bits=8, type="float", strategy="channel")), ("float-quantized", arguments(num_bits=8, type="float", strategy="tensor")),
    ("float-quantized", arguments(num_bits=8, type="float", strategy="block", block_structure=[128, 128])),
    ("nvfp4-pack-quantized", arguments(type="float", strategy="tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")),
    ("mxfp4-pack-quantized", arguments(type="float", strategy="group", group_size=32, scale_dtype="torch.uint8")),
    ("mxfp8-quantized", arguments(num_bits=8, type="float", strategy="group", group_size=32, scale_dtype="torch.uint8")),
]
NAMES = [f"{form} {a['num_bits']} {a['strategy']} {'' if a['symmetric'] else 'zeros'}" for form, a in KINDS]


@pytest.mark.parametrize(("form", "args"), KINDS, ids=NAMES)
@pytest.mark.parametrize("content", ["random", "zeros", "extreme"])
def test_read_to_the_bit(form: str, args: dict[str, Any], content: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    for rows, columns in ((64, 192), (40, 96), (131, 320)):
        weight = torch.randn(rows, columns, generator=generator) * {"random": 1.0, "zeros": 0.0, "extreme": 1e4}[content]
        if content == "extreme":
            weight[::3] *= 1e-7
        state, expected = compressed(form, weight, args)
        checkpoint = open_checkpoint(stored(tmp_path / f"{rows}", form, state, args))
        info = checkpoint.tensors[f"{Q}.weight"]
        assert info.shape == (rows, columns) and info.spec is not None and form in info.stored
        np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight").dequantize(), expected.numpy())
        if info.spec.granularity in ("group", "channel"):
            np.testing.assert_array_equal(checkpoint.read(f"{Q}.weight", slice(16, 40)).dequantize(), expected.numpy()[16:40])


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 7, 8]), count=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_the_older_packing(bits: int, count: int, seed: int) -> None:
    """Until June 2026 (commit 66e631f) a word held as many whole values as fit. Made from that definition: no release of today packs so."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (3, count), np.uint8)
    per_word = 32 // bits
    held = -(-count // per_word)
    words = np.zeros((3, held), np.uint32)
    for i in range(count):
        words[:, i // per_word] |= values[:, i].astype(np.uint32) << np.uint32(i % per_word * bits)
    found = packing(held, count, bits)
    dense = -(-count * bits // 32)
    assert found == (0 if held == dense else per_word)
    if held != dense or 32 % bits == 0 or held == 1:  # elsewhere the dense packing has as many words, and shapes do not tell
        np.testing.assert_array_equal(_unpacked(words.view(np.int32), bits, count, found), values)


@pytest.mark.parametrize(("form", "args"), KINDS, ids=NAMES)
def test_written_as_the_library_writes_it(form: str, args: dict[str, Any], tmp_path: Path) -> None:
    """Byte for byte, and its decompressor gives the same numbers."""
    weight = torch.randn(1090, 320, generator=torch.Generator().manual_seed(5))
    state, expected = compressed(form, weight, args)
    source = open_checkpoint(stored(tmp_path / "library", form, state, args))
    info = source.tensors[f"{Q}.weight"]
    assert info.spec is not None
    options = WriterOptions(specs={f"{Q}.weight": info.spec})
    if form == "int-quantized":  # INT8 is packed where its inputs are not quantized
        options = WriterOptions(specs=options.specs, activations={f"{Q}.weight": TensorSpec("int8", "token", dynamic=True)})
    writer = CODEC.writer(options)
    ours = written(source, writer, options, tmp_path / "ours")
    form = "pack-quantized" if form == "naive-quantized" else form
    assert json.loads((ours / "config.json").read_text())["quantization_config"]["format"] == form
    tensors = {name.removeprefix(f"{Q}."): tensor for name, tensor in load_file(ours / "model.safetensors").items()}
    if "weight_packed" in tensors and "weight_packed" not in state:
        state = BaseCompressor.get_value_from_registry(form).compress({"weight": weight, **scales_of(weight, QuantizationArgs(**args))},
                                                                      QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=form))
    for name, tensor in state.items():
        assert torch.equal(tensors[name].view(torch.uint8) if tensors[name].dtype == torch.float8_e4m3fn else tensors[name],
                           tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor.to(tensors[name].dtype)), name
    assert tensors.keys() >= state.keys()
    scheme = QuantizationScheme(**json.loads((ours / "config.json").read_text())["quantization_config"]["config_groups"]["group_0"])
    if form != "nvfp4-pack-quantized":
        got = BaseCompressor.get_value_from_registry(form).decompress(dict(tensors), scheme)["weight"].float()
        assert torch.equal(got, expected)
    np.testing.assert_array_equal(open_checkpoint(ours).read(f"{Q}.weight").dequantize(), expected.numpy())


def test_what_cannot_be_held_is_said() -> None:
    writer = CODEC.writer(WriterOptions())
    assert "not nf4" in str(writer.why_not("a.weight", TensorSpec("nf4", "group", 64), (64, 128)))
    assert "no multiple" in str(writer.why_not("a.weight", TensorSpec("int4", "group", 128), (64, 192)))
    assert "per block" in str(writer.why_not("a.weight", TensorSpec("int4", "block", 32, 32), (64, 192)))
    assert writer.nearest("a.weight", TensorSpec("nf4", "group", 64), (64, 192)) == TensorSpec("int4", "group", 64, scale_format="fp16")
    spec = TensorSpec("int4", "group", 32, symmetric=False, scale_format="fp16")
    out = {name: np.zeros(part.shape, {"I32": "i4", "I64": "i8", "F16": "f2"}[part.dtype]) for name, part in writer.parts("a.weight", spec, (32, 32)).items()}
    codes, scales = np.zeros((32, 32), np.uint8), np.ones((32, 1), np.float32)
    with pytest.raises(InexactError, match="whole numbers"):
        writer.fill("a.weight", QTensor(codes, scales, spec, (32, 32), zeros=scales * np.float32(7.5)), 0, out)
    with pytest.raises(InexactError, match="offsets"):
        writer.fill("a.weight", QTensor(codes, scales, spec, (32, 32), offsets=scales), 0, out)
    with pytest.raises(InexactError, match="no fp16"):
        writer.fill("a.weight", QTensor(codes, scales * np.float32(1.0001), spec, (32, 32), zeros=scales), 0, out)
    with pytest.raises(InexactError, match="permuted"):
        writer.fill("a.weight", QTensor(codes, scales, spec, (32, 32), zeros=scales, order=np.arange(32, dtype=np.int32)), 0, out)


def test_static_inputs_with_zero_points_are_refused() -> None:
    static = TensorSpec("int8", "tensor", symmetric=False)
    with pytest.raises(UsageError, match=r"the inputs of a\.weight have a stored zero point"):
        CODEC.writer(WriterOptions(activations={"a.weight": static}, input_scales={"a.weight": np.float32([1])}))


def test_mixed_precisions_static_inputs_and_cache_are_written(tmp_path: Path) -> None:
    attention = Q.rpartition(".")[0]
    names = {f"{attention}.{module}.weight": spec for module, spec in (("q_proj", TensorSpec("fp8e4m3", "tensor")), ("k_proj", TensorSpec("fp8e4m3", "tensor")),
                                                                       ("v_proj", TensorSpec("int4", "group", 32, scale_format="fp16")))}
    static = TensorSpec("fp8e4m3", "tensor")
    options = WriterOptions(specs=names, activations=dict.fromkeys(list(names)[:2], static), cache=TensorSpec("fp8e4m3", "tensor"),
                            input_scales={name: np.float32([0.25]) for name in list(names)[:2]},
                            cache_scales={f"{attention}.k": np.float32([0.5]), f"{attention}.v": np.float32([0.125])})
    writer = CODEC.writer(options)
    arrays: dict[str, torch.Tensor] = {}
    for name, spec in names.items():
        parts = writer.parts(name, spec, (64, 64))
        out = {part: np.zeros(p.shape, CODES[p.dtype]) for part, p in parts.items()}
        writer.fill(name, quantize(np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32), spec), 0, out)
        arrays |= {part: torch.from_numpy(out[part]).view(DTYPES[p.dtype]) for part, p in parts.items()}
    arrays |= {name: torch.from_numpy(array) for name, (_, array) in writer.extras(names, []).items()}
    checkpoint = open_checkpoint(write_folder(tmp_path, arrays, writer.config(names, [])["quantization_config"]))
    assert {name: info.spec for name, info in checkpoint.tensors.items()} == names
    assert [checkpoint.tensors[name].activation for name in names] == [static, static, None]
    assert checkpoint.cache == static and "2 stored scales" in checkpoint.notes[0]
    assert checkpoint.input_scales() == {name: np.float32([0.25]) for name in list(names)[:2]}  # type: ignore[attr-defined]


def test_act_order(tmp_path: Path) -> None:
    args = arguments(strategy="group", group_size=32) | {"actorder": "group"}  # the library of today reads it and no longer makes it
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(1))
    plain = arguments(strategy="group", group_size=32)
    index = torch.randperm(128, generator=torch.Generator().manual_seed(2)).to(torch.int32) // 32
    order = torch.argsort(index, stable=True)
    state, by_group = compressed("pack-quantized", weight[:, order], plain)
    # The file keeps inputs in their own order: codes go back to where they came from.
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    back = torch.argsort(order)
    codes = unpack_from_int32(state["weight_packed"], 4, torch.Size((48, 128)))[:, back]
    state |= {"weight_packed": pack_to_int32(codes, 4), "weight_g_idx": index}
    checkpoint = open_checkpoint(stored(tmp_path, "pack-quantized", state, args))
    tensor = checkpoint.read(f"{Q}.weight")
    assert tensor.order is not None and "act-order" in checkpoint.tensors[f"{Q}.weight"].stored
    np.testing.assert_array_equal(tensor.dequantize(), by_group[:, back].numpy())


def test_inputs_and_cache(tmp_path: Path) -> None:
    args = arguments(num_bits=8, strategy="channel")
    state, _ = compressed("int-quantized", torch.randn(32, 64), args)
    quantization = config_of("int-quantized", args, kv_cache_scheme=arguments(num_bits=8, type="float", strategy="tensor"))
    quantization["config_groups"]["group_0"]["input_activations"] = arguments(num_bits=8, strategy="token", dynamic=True)
    tensors = {f"{Q}.{name}": tensor for name, tensor in state.items()}
    attention = Q.rpartition(".")[0]
    tensors |= {f"{attention}.k_scale": torch.ones(1), f"{attention}.v_scale": torch.ones(1)}
    checkpoint = open_checkpoint(write_folder(tmp_path, tensors, quantization))
    activation = checkpoint.tensors[f"{Q}.weight"].activation
    assert activation is not None and (activation.format, activation.granularity, activation.dynamic) == ("int8", "token", True)
    assert checkpoint.cache is not None and checkpoint.cache.format == "fp8e4m3"
    assert "2 stored scales of the key-value cache" in checkpoint.notes[0]


def mixed(tmp_path: Path, targets: list[str], ignore: list[str], modules: tuple[str, ...] = ("q_proj", "k_proj")) -> Path:
    args = arguments(num_bits=8, strategy="channel")
    stem, tensors = Q.rpartition(".")[0], {}
    for module in modules:
        state, _ = compressed("int-quantized", torch.randn(32, 64), args)
        tensors |= {f"{stem}.{module}.{name}": tensor for name, tensor in state.items()}
    tensors[f"{stem}.v_proj.weight"] = torch.ones(32, 64)
    quantization = config_of("int-quantized", args)
    quantization["config_groups"]["group_0"]["targets"] = targets
    return write_folder(tmp_path, tensors, quantization | {"ignore": ignore})


@pytest.mark.parametrize("targets", [["Linear"], [r"re:.*self_attn\.[qk]_proj$"], [Q, Q.replace("q_proj", "k_proj")]])
def test_targets(targets: list[str], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(mixed(tmp_path, targets, ["re:.*v_proj"]))
    assert [info.spec is not None and info.spec.quantized for _, info in sorted(checkpoint.tensors.items())] == [True, True, False]


@pytest.mark.parametrize(("targets", "ignore", "error"), [
    (["Linear"], [], r"v_proj\.weight' is not quantized \(F32\), but group 'group_0' of the config says that it is"),
    (["Linear"], ["re:.*v_proj", Q], r"q_proj\.weight' is quantized, but the config ignores its layer"),
    ([Q], ["re:.*v_proj"], r"k_proj\.weight' is quantized, but no group of the config names its layer"),
    (["re:(a+)+(b+)+(c+)+(d+)+["], [], "regular expression"),
])
def test_config_and_tensors_must_agree(targets: list[str], ignore: list[str], error: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=error):
        open_checkpoint(mixed(tmp_path, targets, ignore))


@pytest.mark.parametrize(("change", "error"), [
    ({"format": "marlin-24"}, "marlin-24.*dense model"), ({"format": "fancy"}, "format is 'fancy', read are"),
    ({"quantization_status": "calibration"}, "not compressed"), ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
    ({"transform_config": {"config_groups": {"R1": {}}}}, "transforms of activations"), ({"config_groups": []}, "not an object"),
    ({"config_groups": {"g": 3}}, "is no group"), ({"ignore": "lm_head"}, "no list of names"), ({"kv_cache_scheme": 8}, "kv_cache_scheme"),
    ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 9, "type": "int"}}}}, "9 bits of type 'int' are not read"),
    ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 0}}}}, "group_size is '0'"),
    ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}}}}, "has shape"),
    ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "diagonal"}}}}, "strategy is 'diagonal'"),
    ({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": False}}}},
     "weight_zero_point' is missing"),
])
def test_configs_that_are_refused(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    args = arguments(strategy="group", group_size=32)
    state, _ = compressed("pack-quantized", torch.randn(32, 64), args)
    with pytest.raises(CheckpointError, match=error) as caught:
        open_checkpoint(stored(tmp_path, "pack-quantized", state, args, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("part", "tensor", "error"), [
    ("weight_packed", torch.zeros(32, 7, dtype=torch.int32), "7 words a row; 64 values of 4 bits take 8"),
    ("weight_packed", torch.zeros(31, 8, dtype=torch.int32), "31 rows"), ("weight_packed", torch.zeros(32, 8, dtype=torch.int64), "type I64"),
    ("weight_scale", torch.zeros(32, 3), r"shape \[32, 3\], expected \[32, 2\]"), ("weight_scale", None, "weight_scale' is missing"),
    ("weight_scale", torch.full((32, 2), torch.nan), "NaN or infinity"), ("weight_scale", torch.zeros(32, 2, dtype=torch.int32), "type I32"),
    ("weight_shape", torch.tensor([32, -64]), "rows"), ("weight_shape", torch.tensor([32]), "shape"), ("weight_shape", None, "weight_shape' is missing"),
    ("weight_zero_point", torch.ones(32, 2, dtype=torch.int8), "not zero, but the config says that weights are symmetric"),
    ("weight_g_idx", torch.full((64,), 2, dtype=torch.int32), "there are 2"), ("weight_g_idx", torch.zeros(64, dtype=torch.int32), "groups of 32"),
    ("weight", torch.ones(32, 64), "there twice"), ("weight_packed", None, "of type|missing|is quantized"),
])
def test_tensors_that_are_refused(part: str, tensor: torch.Tensor | None, error: str, tmp_path: Path) -> None:
    args = arguments(strategy="group", group_size=32)
    state, _ = compressed("pack-quantized", torch.randn(32, 64), args)
    state.pop(part, None)
    if tensor is not None:
        state[part] = tensor
    with pytest.raises(CheckpointError, match=error) as caught:
        open_checkpoint(stored(tmp_path, "pack-quantized", state, args)).read(f"{Q}.weight")
    assert Q in str(caught.value) and "\n" not in str(caught.value)
