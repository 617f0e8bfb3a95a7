"""nvfp4: a name for writing NVFP4 the way NVIDIA's ModelOpt exports it.

What it is: the target `--to nvfp4`, which is `--to modelopt:nvfp4`: E2M1 in groups of 16 with FP8 scales under one float32 scale.
When to choose it: weights for Blackwell, in TensorRT-LLM, vLLM and SGLang. The other common form is compressed-tensors' nvfp4-pack-quantized.
Limits: no folder says of itself that it is of this format: what is written is read as modelopt.
Source: see modelopt.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ._modelopt_writer import ModeloptWriter
from ._quantized import QuantizedCheckpoint
from .base import WriterOptions


class Nvfp4Codec:
    def writer(self, options: WriterOptions) -> ModeloptWriter:
        if options.variant:
            raise UsageError(f"nvfp4 has no variant {options.variant!r}", remedy="write --to nvfp4")
        return ModeloptWriter(replace(options, variant="nvfp4"))

    def claims(self, path: Path) -> bool:
        return False

    def open(self, path: Path) -> QuantizedCheckpoint:
        # transformers writes this name into configs of models that it is to quantize as it loads them.
        raise CheckpointError("asks for NVFP4 to be made while loading and holds none", where=str(path / "config.json"),
                              remedy="remove quantization_config from it, and load with --quantization nvfp4")


CODEC = Nvfp4Codec()
