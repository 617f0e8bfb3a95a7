"""awq: 4-bit weights in AutoAWQ's gemm layout.

What it is: per linear layer `qweight` [in, out / 8], packed along the outputs with each eight interleaved, `qzeros` and `scales`; zero points as they
are (no minus one).
When to choose it: 4-bit weights with zero points for vLLM, SGLang and transformers; groups that divide the inputs.
Limits: 4 bits, and the gemm layout only: gemv, gemv_fast, marlin and llm-awq's own layout are refused by name. Symmetric files (zero_point false) are
read where they hold zero points of 8 throughout, and refused where they are one off.
Source: AutoAWQ's packing_utils and WQLinear_GEMM; arXiv 2306.00978.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._awq_writer import AwqWriter
from ._folder import quant_method
from ._int_layers import Findings, Setting, awq_layer, group_size, open_integers, prefixes, truth, whole
from ._json import shown
from ._quantized import Layer, QuantizedCheckpoint, Raw
from .base import WriterOptions

METHOD = "awq"
LAYOUT = "gemm"
KERNELS = ("exllama", "ipex")  # transformers' names of kernels for the gemm layout, which sometimes end up in a saved config


def _layers(quantization: dict[str, Any], raw: Raw, findings: Findings) -> Iterator[Layer]:
    where = f"{raw.path / 'config.json'}: quantization_config"
    for key, expected in (("version", LAYOUT), ("format", LAYOUT), ("checkpoint_format", LAYOUT), ("backend", "autoawq")):
        found = str(quantization.get(key) or expected).lower()
        if found != expected and not (key == "backend" and found == "auto"):
            raise CheckpointError(f"{key} is {shown(found)}, another layout than {LAYOUT}, which is the one that is read", where=where, remedy=(
                "it names a kernel: if the tensors are gemm's (qweight [in, out / 8]), set version to 'gemm' in config.json" if found in KERNELS
                else "take the model in version gemm, or save it again so with AutoAWQ"))
    setting = Setting(whole(quantization, ("bits", "w_bit"), None, "4, the one width of this layout", lambda v: v == 4, where),
                      group_size(quantization, ("group_size", "q_group_size"), 128, where), sym=not truth(quantization, "zero_point", True, where),
                      remedy="its zero points were stored in GPTQ's convention: fetch the model from another source")
    for prefix in prefixes(raw, "qweight", ("qzeros",)):
        if f"{prefix}g_idx" in raw:
            raise raw.error(f"{prefix}g_idx", "is GPTQ's, which an AWQ layer does not have", "if the tensors are GPTQ's, set quant_method to 'gptq'")
        yield awq_layer(raw, prefix, setting, METHOD, findings)


class AwqCodec:
    def writer(self, options: WriterOptions) -> AwqWriter:
        return AwqWriter(options)

    def claims(self, path: Path) -> bool:
        return path.is_dir() and quant_method(path) == METHOD

    def open(self, path: Path) -> QuantizedCheckpoint:
        return open_integers(path, METHOD, _layers)


CODEC = AwqCodec()
