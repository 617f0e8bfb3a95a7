"""Writes compressed-tensors: integers in words, INT8 and FP8 as they are, FP4 two to a byte; every weight in the precision that it comes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import formats
from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._int_words import pack, words
from ._nibbles import packed_low_first
from .base import InexactError, Part, Writer, WriterOptions

METHOD = "compressed-tensors"
MICRO = {"nvfp4": "nvfp4-pack-quantized", "mxfp4": "mxfp4-pack-quantized", "mxfp8": "mxfp8-quantized"}
SCALES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "e8m0": "U8", "fp8e4m3": "F8_E4M3"}


class CompressedTensorsWriter(Writer):
    """A config group for each precision of weights and inputs that occurs; the one that most weights have is that of all Linear layers."""

    def __init__(self, options: WriterOptions) -> None:
        if options.variant:
            raise UsageError(f"compressed-tensors has no variant {options.variant!r}", remedy="name the target alone; --quantization says the precision")
        self.options = options
        for name, spec in options.activations.items():
            if spec.quantized and spec.format not in (*MICRO, "fp8e4m3") and formats.get(spec.format).kind != "int":
                raise UsageError(f"compressed-tensors has no inputs in {spec.format} ({name})", remedy="name another precision of activations")
            if spec.threshold:
                raise UsageError(f"compressed-tensors cannot say that inputs from {spec.threshold:g} on stay unrounded ({name})",
                                 remedy="name other inputs with --quantization, such as W8A8 or W8A16")
            if self._static(name) and not spec.symmetric:
                raise UsageError(f"the inputs of {name} have a stored zero point, which is not carried along",
                                 remedy="name dynamic ones or none with --quantization, such as W4A16, and --requantize")
            if self._static(name) and name not in options.input_scales:
                raise UsageError(f"compressed-tensors stores a scale of the inputs of {name} ({spec.format}), and the source has none that it could hold",
                                 remedy="name dynamic ones or none with --quantization, such as W4A16, and --requantize")

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        if not spec.quantized:
            return "it is not quantized"
        number = formats.get(spec.format)
        if spec.format in MICRO:
            return None if shape[1] % spec.size == 0 else f"its {shape[1]} inputs are no multiple of {spec.size}"
        if spec.format == "fp8e4m3":
            known: tuple[str, ...] = ("tensor", "channel", "block", "group")
        elif number.kind == "int":
            known = ("channel", "group", *(("tensor",) if spec.format == "int8" else ()))
        else:
            return f"compressed-tensors has integers, FP8 (E4M3), MXFP8, MXFP4 and NVFP4, not {spec.format}"
        if spec.granularity not in known:
            return f"compressed-tensors has {spec.format} with one scale per {', '.join(known)}, not per {spec.granularity}"
        if spec.granularity == "group" and shape[1] % spec.size:
            return f"its {shape[1]} inputs are no multiple of the group of {spec.size}"
        return None

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        number = formats.get(spec.format)
        if spec.format == "fp8e5m2":
            return TensorSpec("fp8e4m3", "channel")
        if spec.format in MICRO and self.why_not(name, spec, shape) is None:
            return spec  # only its second level did not fit
        token = spec.format if spec.quantized and number.kind == "int" else "int8" if spec.quantized and spec.bits == 8 else "int4"
        sizes = [size for size in (spec.size if spec.granularity == "group" else 128, 128, 64, 32, 16) if shape[1] % size == 0]
        if token == "int8" or not sizes:
            return TensorSpec(token, "channel", symmetric=spec.symmetric)
        dtype = self.options.config.get("dtype") or self.options.config.get("torch_dtype")
        # Engines round scales to the type of the model as they load them.
        return TensorSpec(token, "group", sizes[0], symmetric=spec.symmetric, scale_format="bf16" if dtype == "bfloat16" else "fp16")

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        stem, (rows, columns) = name.removesuffix("weight"), (shape[0], shape[1])
        form, scales = self._format(name, spec), spec.scale_shape(shape)
        held = (1,) if spec.granularity == "tensor" else scales
        parts = {f"{stem}weight_scale": Part(SCALES[spec.scale_format], held)}
        if form == "pack-quantized":
            parts |= {f"{stem}weight_packed": Part("I32", (rows, words(columns, spec.bits))), f"{stem}weight_shape": Part("I64", (2,))}
            if not spec.symmetric:
                parts[f"{stem}weight_zero_point"] = Part("I32", (words(rows, spec.bits), scales[1]))
        elif spec.format in ("nvfp4", "mxfp4"):
            parts[f"{stem}weight_packed"] = Part("U8", (rows, columns // 2))
            if spec.format == "nvfp4":
                parts[f"{stem}weight_global_scale"] = Part("F32", (1,))
        else:
            parts[name] = Part("I8" if spec.format == "int8" else "F8_E4M3", shape)
            if not spec.symmetric:
                parts[f"{stem}weight_zero_point"] = Part("I8", held)
        if name in self.options.input_scales and self._static(name):
            parts[stem + self._inputs(name)] = Part("F32", (1,))
        return parts

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        spec, stem, rows = tensor.spec, name.removesuffix("weight"), tensor.shape[0]
        if tensor.order is not None or tensor.factors is not None:
            raise InexactError("its inputs are permuted (act-order, which compressed-tensors dropped) or scaled")
        if tensor.offsets is not None:
            raise InexactError("it has offsets, which are no whole zero points")
        codes, form = np.asarray(tensor.codes), self._format(name, spec)
        if form == "pack-quantized":
            middle = 0 if not spec.symmetric else 1 << (spec.bits - 1)
            stored = (codes.astype(np.int16) + middle).astype(np.uint8)
            out[f"{stem}weight_packed"][first : first + rows] = pack(stored, spec.bits)
            out[f"{stem}weight_shape"][:] = len(out[f"{stem}weight_packed"]), tensor.shape[1]
        elif spec.format in ("nvfp4", "mxfp4"):
            out[f"{stem}weight_packed"][first : first + rows] = packed_low_first(codes)
        elif spec.symmetric:
            out[name][first : first + rows] = codes
        else:
            out[name][first : first + rows] = (codes ^ np.uint8(128)).view(np.int8)
        self._fill_scales(stem, tensor, first, out)
        if not spec.symmetric:
            _fill_zeros(stem, tensor, first, out, form == "pack-quantized")
        if stem + self._inputs(name) in out:
            scale = self.options.input_scales[name].reshape(1)
            out[stem + self._inputs(name)][:] = 1 / scale.astype(np.float64) if self._inputs(name) == "input_global_scale" else scale

    def _fill_scales(self, stem: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        spec, scales = tensor.spec, np.asarray(tensor.scales, np.float32)
        if spec.format == "nvfp4":
            divisor = np.float32(1 / np.float64(1 if tensor.outer is None or not tensor.outer else tensor.outer))  # 0: all zeros
            if not np.isfinite(divisor) or not np.array_equal(scales / divisor, np.asarray(tensor.whole_scales)):
                raise InexactError("its second-level scale is no divisor of a float32, as which compressed-tensors stores it")
            out[f"{stem}weight_global_scale"][:] = divisor
        stored = formats.get(spec.scale_format).encode(scales)
        if not np.array_equal(formats.get(spec.scale_format).decode(stored), scales):
            raise InexactError(f"its scales are no {spec.scale_format}")
        target = out[f"{stem}weight_scale"]
        if spec.granularity == "tensor":
            target[:] = stored.reshape(1)
        else:
            begin = first // spec.size if spec.granularity == "block" else first
            target[begin : begin + len(stored)] = stored

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        found: dict[tuple[TensorSpec, TensorSpec | None, bool], list[str]] = {}
        for name, spec in weights.items():
            found.setdefault((spec, self.options.activations.get(name), self._static(name) and name in self.options.input_scales), []).append(name)
        sizes = Counter({key: len(names) for key, names in found.items()})
        groups: dict[str, Any] = {}
        for place, (key, _) in enumerate(sizes.most_common()):
            spec, activation, static = key
            named = [name.removesuffix(".weight") for name in found[key]]
            targets = named if place else ["Linear", *(name for name in named if name.endswith("embed_tokens"))]  # an embedding is no Linear
            inputs = None if activation is None or not activation.quantized or not (activation.dynamic or static) else _arguments(activation)
            groups[f"group_{place}"] = {"targets": targets, "format": self._format(found[key][0], spec), "weights": _arguments(spec),
                                        "input_activations": inputs, "output_activations": None}
        forms = {group["format"] for group in groups.values()}
        ignored = [*(name.removesuffix(".weight") for name in kept if not name.endswith("embed_tokens.weight")),
                   *([] if "lm_head.weight" in weights else ["lm_head"])]
        cache = self.options.cache
        return {"quantization_config": {
            "quant_method": METHOD, "format": forms.pop() if len(forms) == 1 else "mixed-precision" if forms else "dense", "quantization_status": "compressed",
            "config_groups": groups, "ignore": list(dict.fromkeys(ignored)), "global_compression_ratio": None,
            "kv_cache_scheme": _arguments(cache, cache=True) if cache is not None and self._told() else None}}

    def extras(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, tuple[Part, np.ndarray]]:
        cache, found = self.options.cache, {}
        for place, scale in self.options.cache_scales.items() if self._told() else ():
            # Those of heads lie in the shape in which they meet [heads, tokens, dim].
            shape = (scale.size, 1, 1) if cache is not None and cache.granularity == "token" else (scale.size,)
            found[f"{place}_scale"] = Part("F32", shape), scale.astype(np.float32).reshape(shape)
        return found

    def cache_why_not(self, cache: TensorSpec, scales: bool) -> str | None:
        if cache.format != "fp8e4m3" and formats.get(cache.format).kind != "int":
            return f"compressed-tensors has caches in integers and FP8 (E4M3), not {cache.format}"
        if (cache.granularity, cache.dynamic) not in (("token", True), ("token", False), ("tensor", False)):
            return f"compressed-tensors has caches with computed scales per token, or stored ones per layer or head, not per {cache.granularity}"
        return None if cache.dynamic or scales else "the scales of its key-value cache are not stored"

    def _told(self) -> bool:
        """Whether the config says how the cache is quantized."""
        cache = self.options.cache
        return cache is not None and cache.quantized and self.cache_why_not(cache, bool(self.options.cache_scales)) is None

    def _format(self, name: str, spec: TensorSpec) -> str:
        if spec.format in MICRO:
            return MICRO[spec.format]
        if spec.format == "fp8e4m3":
            return "float-quantized"
        activation = self.options.activations.get(name)
        plain = spec.format == "int8" and (spec.granularity == "tensor" or (activation is not None and activation.format == "int8"))
        return "int-quantized" if plain else "pack-quantized"

    def _static(self, name: str) -> bool:
        activation = self.options.activations.get(name)
        return activation is not None and activation.quantized and (not activation.dynamic or activation.format == "nvfp4")

    def _inputs(self, name: str) -> str:
        activation = self.options.activations.get(name)
        return "input_global_scale" if activation is not None and activation.format == "nvfp4" else "input_scale"


def _fill_zeros(stem: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray], packed: bool) -> None:
    spec, zeros = tensor.spec, np.asarray(tensor.zeros, np.float32)
    if not bool(((zeros == np.round(zeros)) & (zeros >= 0) & (zeros < 1 << spec.bits)).all()):
        raise InexactError("its zero points are not whole numbers of its bits")
    target = out[f"{stem}weight_zero_point"]
    if packed:
        some = pack(np.ascontiguousarray(zeros.T).astype(np.uint8), spec.bits).T
        begin = first * spec.bits // 32
        target[begin : begin + len(some)] = some
    else:
        signed = (zeros - (1 << (spec.bits - 1))).astype(np.int8)
        target[first : first + len(signed)] = signed.reshape(-1, *target.shape[1:]) if spec.granularity != "tensor" else signed.reshape(1)


def _arguments(spec: TensorSpec, cache: bool = False) -> dict[str, Any]:
    """QuantizationArgs of a spec, of weights and inputs or of the `cache`."""
    number = formats.get(spec.format)
    micro = spec.format in MICRO
    heads = cache and spec.granularity == "token" and not spec.dynamic
    strategy = "tensor_group" if spec.format == "nvfp4" else "attn_head" if heads else spec.granularity
    return {"num_bits": number.bits, "type": "int" if number.kind == "int" else "float", "symmetric": spec.symmetric, "strategy": strategy,
            "group_size": spec.size if spec.granularity == "group" else None,
            "block_structure": [spec.size, spec.columns] if spec.granularity == "block" else None,
            "dynamic": "local" if spec.format == "nvfp4" and spec.dynamic else spec.dynamic, "actorder": None,
            "scale_dtype": {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8", "mxfp8": "torch.uint8"}[spec.format] if micro else None,
            "zp_dtype": "torch.int8" if not spec.symmetric else None, "observer": None if spec.dynamic else "minmax", "observer_kwargs": {}}
