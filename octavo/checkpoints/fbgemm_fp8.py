"""fbgemm_fp8: E4M3 weights with one scale per row, as FBGEMM's kernels take them (Llama 3.1 405B FP8).

What it is: `X.weight` in E4M3 beside `X.weight_scale`, float32 [out, 1]. Inputs are quantized at run time, per token, with the scale bounded above
(`activation_scale_ub`, 1200 by default).
When to choose it: that checkpoint; newer tools write compressed-tensors' FP8_DYNAMIC, which is the same with another config.
Limits: stacks of experts in one tensor (Llama 4) are refused. The bound on the inputs' scale is not applied: nothing is clipped here.
Source: transformers, integrations/fbgemm_fp8.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._folder import quant_method
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized
from .fp8 import fp8_layer

METHOD = "fbgemm_fp8"
SCALE = "weight_scale"


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    for name in raw.entries:
        if name.endswith(f".{SCALE}"):
            prefix = name.removesuffix(SCALE)
            raw.entry(name, ("F32", "BF16", "F16"), (raw.entry(f"{prefix}weight", ("F8_E4M3",), (None, None)).shape[0], 1))
            yield fp8_layer(prefix, SCALE, None, False, raw)


class FbgemmFp8Codec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_quantized(path, METHOD, _layers, used=lambda name: name.endswith(".input_scale_ub"))


CODEC = FbgemmFp8Codec()
