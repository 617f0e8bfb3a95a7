"""Scales of the KV cache: are they complete, sane, and does anybody read them.

Names: vLLM's maybe_remap_kv_scale_name (model_executor/model_loader/weight_utils.py) turns `X.self_attn.k_proj.k_scale`, `X.self_attn.qkv_proj.k_scale`
and `X.self_attn.k_scale` into `X.self_attn.attn.k_scale` and drops, with one warning, what it then does not find: a name of another kind, or a scale
although the config states no quantized cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from ..findings import Disorder, Finding
from ..patient import Patient
from . import Check
from .structure import CACHE

UNREAD = Disorder("cache_scales_unread", "error", "scales of the KV cache under names, or with a config, for which engines drop them with a warning",
                  "name them ….self_attn.k_scale and ….self_attn.v_scale, and state kv_cache_scheme (compressed-tensors) or kv_cache_quant_algo (ModelOpt)")
ABSENT = Disorder("cache_scales_missing", "error", "the config states a KV cache with stored scales, but they are not there: engines then use 1",
                  "calibrate again, or take kv_cache_scheme out of the config")
ODD = Disorder("cache_scale_value", "warning", "a scale of the KV cache that calibration would not give", "calibrate the KV cache again")
READ = re.compile(r"\.self_attn\.(?:(?:attn|[kv]_proj|qkv_proj|qkqkv_proj)\.)?([kvq])_(?:scale|zero_point)$|\.self_attn\.kv_scale$|"
                  r"cache[kv]_matmul\.activation_(?:scale|zero_point)$")
LARGE = 0.5  # ModelOpt warns above: keys beyond 224 in E4M3


def check(patient: Patient) -> Iterator[Finding]:
    found = [name for name in patient.survey.tensors if CACHE.search(name)]
    scheme = stated_cache(patient)
    for name in found:
        if not READ.search(name):
            yield UNREAD(name, "no engine looks for this name")
        elif scheme is None:
            yield UNREAD(name, "quantization_config states no quantized KV cache, so nothing waits for this tensor")
        if patient.survey.is_float(name) and "scale" in name:
            values = patient.survey.floats(name)
            if values.size and not np.isfinite(values).all():
                yield ODD(name, "NaN or infinity")
            elif values.size and float(values.min()) <= 0:
                yield ODD(name, f"{float(values.min()):.4g}: a scale is above 0")
            elif values.size and float(values.max()) > LARGE and str(scheme).startswith("8-bit float"):
                yield ODD(name, f"{float(values.max()):.4g}: FP8 above {LARGE} means values beyond {448 * LARGE:g}; 1 means that it was never calibrated")
    if scheme is None or scheme.endswith("dynamic"):
        return
    layers = patient.number("num_hidden_layers") or 0
    have = {match[1] + match[2] for name in found if (match := re.search(r"layers\.(\d+)\..*?(?:_proj\.)?([kv])_scale$", name))}
    lacking = [f"layers.{n}.self_attn.{part}_scale" for n in range(min(layers, 10_000)) for part in "kv" if f"{n}{part}" not in have]
    if lacking:
        yield ABSENT(lacking[0], f"{len(lacking)} of {2 * layers} are missing; the config states {scheme}")


def stated_cache(patient: Patient) -> str | None:
    """What the config says of the KV cache, in words; None for nothing."""
    said = patient.quantization
    scheme = said.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return f"{scheme.get('num_bits')}-bit {scheme.get('type')}, {'dynamic' if scheme.get('dynamic') is True else 'static'}"
    inner = said.get("quantization")
    algorithm = said.get("kv_cache_quant_algo") or (inner.get("kv_cache_quant_algo") if isinstance(inner, dict) else None) or said.get("kv_cache_quant_type")
    if algorithm:
        return f"{'8-bit float' if str(algorithm).upper() == 'FP8' else algorithm}, {'dynamic' if 'NVFP4' in str(algorithm).upper() else 'static'}"
    return None


CHECK = Check(check, (UNREAD, ABSENT, ODD))
