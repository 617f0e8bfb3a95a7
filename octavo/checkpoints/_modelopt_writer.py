"""Writes what ModelOpt would export: for each weight the algorithm that holds its precision; more than one makes MIXED_PRECISION."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import formats
from ..errors import UsageError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ._folder import MODELOPT_FILE
from ._modelopt_forms import BLOCK, MXFP8, NVFP4
from ._nibbles import packed_low_first
from .base import InexactError, Part, Writer, WriterOptions

METHOD = "modelopt"
PRODUCER = {"name": "octavo"}
# What numbers are rounded to, by the variant; the algorithm follows from the precision and from how inputs are quantized.
VARIANTS = {"nvfp4": NVFP4, "fp8": TensorSpec("fp8e4m3", "channel"), "mxfp8": MXFP8, "w8a16": TensorSpec("int8", "channel"),
            "w4a16_awq": TensorSpec("int4", "group", 128)}
CACHES = {"fp8e4m3": "FP8", "int8": "INT8", "nvfp4": "NVFP4"}
FALLBACK = TensorSpec("fp8e4m3", "channel")  # for widths that do not divide into groups


class ModeloptWriter(Writer):
    def __init__(self, options: WriterOptions) -> None:
        if options.variant.lower() not in ("", *VARIANTS):
            raise UsageError(f"unknown algorithm {options.variant!r} of ModelOpt", remedy=f"known: {', '.join(VARIANTS)}")
        self.options, self.variant = options, options.variant.lower()

    def why_not(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        if self.variant and spec.format != VARIANTS[self.variant].format:
            return f"{self.variant} holds {VARIANTS[self.variant].format} weights"
        if self._algorithm(name, spec, shape) is None:
            return ("ModelOpt's formats hold nvfp4 and mxfp8, fp8e4m3 (one scale, one per row, blocks of 128 x 128), int8 per row, and symmetric int4 in "
                    "groups that divide the width, with an even number of rows")
        return None

    def _algorithm(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> str | None:
        inputs = self.options.activations.get(name)
        static = inputs is not None and not inputs.dynamic and name in self.options.input_scales
        whole = spec.granularity != "group" or shape[1] % spec.size == 0
        match spec.format, spec.granularity:
            case ("nvfp4", _) if whole:
                # Inputs in NVFP4 need the stored second-level scale; without one only the weights can be said to be quantized.
                wanted = inputs is not None and inputs.format == "nvfp4" and name in self.options.input_scales
                return "NVFP4" if wanted else "W4A8_NVFP4_FP8" if static and inputs is not None and inputs.format == "fp8e4m3" else "W4A16_NVFP4"
            case ("fp8e4m3", "tensor"):
                return "FP8" if static else "FP8_PER_CHANNEL_PER_TOKEN"
            case ("fp8e4m3", "channel"):
                return "FP8_PER_CHANNEL_PER_TOKEN"
            case ("fp8e4m3", "block") if (spec.size, spec.columns) == (BLOCK, BLOCK):
                return "FP8_PB_WO"
            case ("int8", "channel") if spec.symmetric:
                return "W8A8_SQ_PER_CHANNEL" if static and inputs is not None and inputs.format == "int8" else "W8A16"
            case ("int4", "group") if spec.symmetric and whole and shape[0] % 2 == 0:
                return "W4A16_AWQ"
            case ("mxfp8", _) if whole:
                return "MXFP8"
        return None

    def nearest(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
        wanted = VARIANTS[self.variant or "nvfp4"]
        if wanted.format == "int4":
            size = next((size for size in (128, 64, 32, 16) if shape[1] % size == 0), 0)
            return TensorSpec("int4", "group", size) if size and shape[0] % 2 == 0 else FALLBACK
        return FALLBACK if wanted.granularity == "group" and shape[1] % wanted.size else wanted

    def parts(self, name: str, spec: TensorSpec, shape: tuple[int, ...]) -> dict[str, Part]:
        stem, algorithm = name.removesuffix("weight"), self._algorithm(name, spec, shape)
        rows, columns = shape
        scales = spec.scale_shape((rows, columns))
        inputs = {f"{stem}input_scale": Part("F32", ())} if name in self.options.input_scales and "A16" not in str(algorithm) else {}
        scale = f"{stem}weight_scale"
        match algorithm:
            case "FP8":
                return {name: Part("F8_E4M3", shape), scale: Part("F32", ()), **inputs}
            case "FP8_PER_CHANNEL_PER_TOKEN":
                return {name: Part("F8_E4M3", shape), scale: Part("F32", (rows,))}
            case "FP8_PB_WO":
                return {name: Part("F8_E4M3", shape), scale: Part("F32", (scales[0], 1, scales[1], 1))}
            case "W8A16" | "W8A8_SQ_PER_CHANNEL":
                return {name: Part("I8", shape), scale: Part("F32", (rows,)), **inputs}
            case "W4A16_AWQ":
                return {name: Part("U8", (rows // 2, columns)), scale: Part("F32", scales), f"{stem}pre_quant_scale": Part("F32", (columns,))}
            case "MXFP8":
                return {name: Part("F8_E4M3", shape), scale: Part("U8", scales)}
        return {name: Part("U8", (rows, columns // 2)), scale: Part("F8_E4M3", scales), f"{stem}weight_scale_2": Part("F32", ()), **inputs}

    def fill(self, name: str, tensor: QTensor, first: int, out: Mapping[str, np.ndarray]) -> None:
        stem, spec, count = name.removesuffix("weight"), tensor.spec, tensor.shape[0]
        smoothing = f"{stem}pre_quant_scale"
        if tensor.order is not None or (tensor.factors is not None and smoothing not in out):
            raise InexactError("its inputs are permuted or scaled")
        rows, scales, codes = slice(first, first + count), np.asarray(tensor.scales, np.float32), np.asarray(tensor.codes)
        scale = out[f"{stem}weight_scale"]
        if spec.format == "int4":
            pairs = codes.view(np.uint8).reshape(count // 2, 2, -1) & 15
            out[name][first // 2 : (first + count) // 2] = pairs[:, 0] | pairs[:, 1] << 4
            scale[rows] = scales
            out[smoothing][...] = 1 if tensor.factors is None else tensor.factors
        elif spec.format == "nvfp4":
            out[name][rows] = packed_low_first(codes)
            scale[rows] = _encoded(scales, "fp8e4m3")
            outer = np.float32(1 if tensor.outer is None else tensor.outer)
            if not np.array_equal(scales * outer, np.asarray(tensor.whole_scales)):
                raise InexactError("its second-level scale is no float32 factor, as which ModelOpt stores it")
            out[f"{stem}weight_scale_2"][...] = outer
        elif spec.format == "mxfp8":
            out[name][rows] = codes
            scale[rows] = _encoded(scales, "e8m0")
        else:
            out[name][rows] = codes
            if spec.granularity == "block":
                scale[first // BLOCK : -(-(first + count) // BLOCK), 0, :, 0] = scales
            elif scale.ndim == 0:
                scale[...] = scales.reshape(())
            else:
                scale[rows] = scales[:, 0]  # one scale for all of it is repeated
        if f"{stem}input_scale" in out:
            out[f"{stem}input_scale"][...] = self.options.input_scales[name].reshape(())

    def extras(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, tuple[Part, np.ndarray]]:
        if self._cache() is None:
            return {}
        found: dict[str, tuple[Part, np.ndarray]] = {}
        for place, scale in self.options.cache_scales.items():
            attention, _, letter = place.rpartition(".")
            found[f"{attention}.{letter}_proj.{letter}_scale"] = (Part("F32", ()), np.asarray(scale, np.float32).reshape(()))
        return found

    def cache_why_not(self, cache: TensorSpec, scales: bool) -> str | None:
        if cache.format not in CACHES or (cache.format != "nvfp4" and (cache.dynamic or cache.granularity != "tensor")):
            return "ModelOpt's caches have one stored scale a layer, in FP8 or INT8 (Cfp8ts, C8ts)"
        return None if scales else "the scales of its key-value cache are not stored"

    def _cache(self) -> str | None:
        """The cache's algorithm; None too where its scales are not one per layer."""
        cache, scales = self.options.cache, self.options.cache_scales
        if cache is None or not scales or any(np.asarray(scale).size != 1 for scale in scales.values()):
            return None
        return CACHES.get(cache.format)

    def _said(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        """hf_quant_config.json's "quantization"."""
        layers: dict[str, dict[str, Any]] = {}
        for name, spec in weights.items():
            # Shapes decide only whether a precision can be held, which has been asked.
            entry: dict[str, Any] = {"quant_algo": self._algorithm(name, spec, (2, spec.size or 1))}
            if spec.granularity == "group":
                entry["group_size"] = spec.size
            if entry["quant_algo"] == "W4A16_AWQ":
                entry |= {"has_zero_point": False, "pre_quant_scale": True}
            layers[name.removesuffix(".weight")] = entry
        # A head that shares the embedding's weight is no tensor of its own, and is not quantized.
        skipped = [*(name.removesuffix(".weight") for name in kept), *([] if "lm_head.weight" in weights else ["lm_head"])]
        common: dict[str, Any] = {"kv_cache_quant_algo": self._cache()}
        first = next(iter(layers.values()), {"quant_algo": None})
        if all(entry == first for entry in layers.values()):
            return {**first, **common, "exclude_modules": sorted(set(skipped))}
        return {"quant_algo": "MIXED_PRECISION", **common, "quantized_layers": layers, "exclude_modules": sorted(set(skipped))}

    def files(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        return {MODELOPT_FILE: {"producer": PRODUCER, "quantization": self._said(weights, kept)}}

    def config(self, weights: Mapping[str, TensorSpec], kept: Sequence[str]) -> dict[str, Any]:
        said = self._said(weights, kept)
        quantization: dict[str, Any] = {"quant_method": METHOD, "producer": PRODUCER, "quant_algo": said["quant_algo"], "ignore": said["exclude_modules"],
                                        **{key: said[key] for key in ("group_size", "quantized_layers") if key in said}}
        if said["kv_cache_quant_algo"] == "FP8":
            quantization["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
        elif said["kv_cache_quant_algo"]:
            quantization["kv_cache_scheme"] = said["kv_cache_quant_algo"]
        return {"quantization_config": quantization}


def _encoded(scales: np.ndarray, scale_format: str) -> np.ndarray:
    """Codes of scales that have come from such codes. Raises InexactError for others."""
    number = formats.get(scale_format)
    codes: np.ndarray = number.encode(scales)
    if (scales < 0).any() or not np.array_equal(number.decode(codes), scales):
        raise InexactError(f"its scales are no {scale_format} numbers")
    return codes
