"""fastdeploy: folders whose quantization_config is PaddlePaddle FastDeploy's (`{"quantization": "wint4", ...}`, without a quant_method).

What it is: most such folders hold unquantized weights, and the config names what FastDeploy quantizes them to as it loads (`is_quantized` false or
absent): they are read as they are, and the scheme is told in `notes`. Folders quantized offline hold `quant_weight`, `weight_scale` and
`activation_scale`.
When to choose it: where a model is published in it.
Limits: `quant_weight` is not read. FastDeploy copies it into its kernels as it stands, so it lies in the order that one generation of GPUs multiplies:
wint8, wint4, w4a8 and w4afp8 are permuted and interleaved for tensor cores (`is_permuted`), tensor_wise_fp8 belongs to rotated inputs, and wint2 is a
code of its own; none of these layouts is published. Folders in Paddle's layout ([in, out], no torch_dtype in config.json) are refused too: square
weights would load transposed.
Source: FastDeploy's model_executor/layers/quantization and linear.py; docs/quantization.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._folder import quant_method
from ._json import shown
from ._quantized import Layer, QuantizedCheckpoint, Raw, open_quantized, quantization_config

METHOD = "fastdeploy"
QUANTIZED = ("quant_weight", "super_scales", "code_scale")
CACHE = ("cachek_matmul.activation_scale", "cachev_matmul.activation_scale", "cachek_matmul.activation_zero_point",
         "cachev_matmul.activation_zero_point")
REMEDY = "take the unquantized model, which Octavo quantizes as it loads"


def _layers(config: dict[str, Any], quantization: dict[str, Any], raw: Raw) -> Iterator[Layer]:
    scheme = quantization.get("quantization")
    for name in raw.entries:
        if name.rpartition(".")[2] in QUANTIZED:
            raise raw.error(name, f"is quantized as {shown(scheme)} in the order that FastDeploy's kernels want, which is not published", REMEDY)
    for key in ("is_quantized", "is_moe_quantized"):
        if quantization.get(key):
            raise CheckpointError(f"{key} is set, but no tensor of FastDeploy's quantized layers is there", where=f"{raw.path / 'config.json'}: "
                                  "quantization_config", remedy=REMEDY)
    if not any(part.get(key) for part in (config, config.get("text_config") or {}) for key in ("torch_dtype", "transformers_version")
               if isinstance(part, dict)):
        raise CheckpointError("is in Paddle's layout ([in, out]), which is not read", where=str(raw.path / "config.json"),
                              remedy="take the model's version for PyTorch (names end in -PT)")
    yield from ()


class FastdeployCodec:
    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        scheme = quantization_config(path).get("quantization")
        notes = [f"the weights are unquantized; {shown(scheme)} is what FastDeploy quantizes them to as it loads, Octavo follows --quantization"]
        return open_quantized(path, METHOD, _layers, used=lambda name: name.endswith(CACHE), notes=notes)


CODEC = FastdeployCodec()
