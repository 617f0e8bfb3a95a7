"""Any torch module in fewer bits: its linears, convolutions, embeddings and recurrent layers become layers on the native kernels.

    quantized = octavo.quantize(module, "W8A8")                  # dynamic
    quantized = octavo.quantize(module, "W8A8ts", data=batches)  # static scales, from calibration
    octavo.save_module(quantized, "folder"); octavo.load_module("folder", Module())
"""

from __future__ import annotations

from ._quantize import Report, Rounder, quantize, report
from ._saving import load, save

__all__ = ["Report", "Rounder", "load", "quantize", "report", "save"]
