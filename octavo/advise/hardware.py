"""Hardware: what generations of GPUs, CPUs, TPUs and Inferentia chips multiply themselves, each with its source; which of them this machine is.

native      matrix instructions (on CPUs also vector instructions) take numbers of this format
emulated    numbers are stored in this format and widened on the way to arithmetic that the chip has: they save memory and bandwidth, no operations
no          no known software runs it there, or only as a curiosity

Figures of a device (memory, bandwidth, dense peak rates) are its maker's, for the largest usual model. They serve for predictions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..machine import Machine

Answer = Literal["native", "emulated", "no"]
FORMATS = ("16bit", "int8", "fp8", "int4", "fp4")
NAMES = {"16bit": "16 bits", "int8": "INT8", "fp8": "FP8", "int4": "INT4", "fp4": "FP4"}

# A source for every claim; a row names them by these keys.
SOURCES = {
    "ptx": "NVIDIA, PTX ISA 8.7, warp-level matrix instructions: docs.nvidia.com/cuda/parallel-thread-execution",
    "te": "NVIDIA, Transformer Engine, datatype and hardware support matrix: nvidia.github.io/TransformerEngine/support_matrix.html",
    "vllm": "vLLM, supported hardware (INT8, FP8; FP8 and FP4 weights through Marlin; bitsandbytes): docs.vllm.ai/en/latest/features/quantization",
    "marlin": "vLLM, FP4 weights through Marlin where there is no FP4 arithmetic: vllm-project/vllm, marlin_utils_fp4.py",
    "cutlass": "NVIDIA, CUTLASS, Blackwell functionality (tcgen05.mma: f16, i8, f8f6f4, mxf4nvf4): docs.nvidia.com/cutlass",
    "v100": "NVIDIA, Tesla V100 data sheet",
    "t4": "NVIDIA, Tesla T4 data sheet",
    "a100": "NVIDIA, A100 80 GB data sheet",
    "l4": "NVIDIA, L4 data sheet (half of its figures with sparsity)",
    "h100": "NVIDIA, H100 SXM data sheet (half of its figures with sparsity)",
    "b200": "NVIDIA, DGX B200 data sheet, an eighth of it (half of its figures with sparsity)",
    "intel": "Intel 64 and IA-32 manual: TDPBSSD, TDPBF16PS (AMX), VPDPBUSD (VNNI), VPMADDUBSW (AVX2)",
    "arm": "Arm, Neon intrinsics reference (SDOT, SMMLA, BFMMLA): developer.arm.com/architectures/instruction-sets/intrinsics",
    "octavo": "this project's kernels: octavo explain NAME",
    "tpu4": "Google, TPU v4: cloud.google.com/tpu/docs/v4",
    "tpu5e": "Google, TPU v5e: cloud.google.com/tpu/docs/v5e",
    "tpu": "vLLM 0.11, supported hardware (INT8 on TPU, no FP8): docs.vllm.ai/en/v0.11.2/features/quantization",
    "jax": "JAX, what TPU matrix units take and at which rate: docs.jax.dev/en/latest/pallas/tpu/hardware.html; jax-ml/jax, tpu_info.py",
    "inf1": "AWS, NeuronCore-v1 and Inferentia: awsdocs-neuron.readthedocs-hosted.com/en/latest/general/arch/neuron-hardware/inferentia.html",
    "inf2": "AWS, NeuronCore-v2 and Inferentia2: awsdocs-neuron.readthedocs-hosted.com/en/latest/general/arch/neuron-hardware/inferentia2.html",
    "neuron": "AWS, Neuron data types: awsdocs-neuron.readthedocs-hosted.com/en/latest/general/arch/neuron-features/data-types.html",
}


@dataclass(frozen=True)
class Device:
    """One part as its maker states it: bytes of memory, bytes a second, dense operations a second by format it multiplies natively."""

    name: str
    memory: float
    bandwidth: float
    peaks: Mapping[str, float]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A generation: an answer for each of FORMATS, in their order, what must be known of them, where that stands, and a device of it."""

    key: str
    kind: Literal["GPU", "CPU", "TPU", "Inferentia"]
    name: str
    answers: tuple[Answer, Answer, Answer, Answer, Answer]
    note: str
    sources: tuple[str, ...]
    device: Device | None = None

    def answer(self, kind: str) -> Answer:
        return self.answers[FORMATS.index(kind)]


def _device(name: str, memory_gb: float, gb_per_s: float, sources: str, **tera: float) -> Device:
    return Device(name, memory_gb * 1e9, gb_per_s * 1e9, {kind.replace("bits16", "16bit"): rate * 1e12 for kind, rate in tera.items()}, (sources,))


MATRIX = (
    Row("volta", "GPU", "Volta (V100, 7.0)", ("native", "emulated", "no", "emulated", "emulated"),
        "16 bits are FP16, not BF16; INT8 on vector units alone (dp4a); FP4 is bitsandbytes'", ("ptx", "vllm"), _device("V100", 32, 900, "v100", bits16=125)),
    Row("turing", "GPU", "Turing (T4, 7.5)", ("native", "native", "emulated", "native", "emulated"),
        "16 bits are FP16, not BF16; FP8 and FP4 weights are widened to it", ("ptx", "vllm"), _device("T4", 16, 300, "t4", bits16=65, int8=130, int4=260)),
    Row("ampere", "GPU", "Ampere (A100, 8.0; A10, 8.6)", ("native", "native", "emulated", "native", "emulated"),
        "FP8 and FP4 weights are widened to 16 bits", ("ptx", "te", "vllm", "marlin"), _device("A100", 80, 2039, "a100", bits16=312, int8=624, int4=1248)),
    Row("ada", "GPU", "Ada (L4, L40S, 8.9)", ("native", "native", "native", "native", "emulated"),
        "FP4 weights are widened to 16 bits", ("ptx", "te", "vllm", "marlin"), _device("L4", 24, 300, "l4", bits16=121, int8=242, fp8=242)),
    Row("hopper", "GPU", "Hopper (H100, H200, 9.0)", ("native", "native", "native", "emulated", "emulated"),
        "warpgroup matrix units take no INT4", ("ptx", "te", "vllm", "marlin"), _device("H100", 80, 3350, "h100", bits16=989, int8=1979, fp8=1979)),
    Row("blackwell", "GPU", "Blackwell (B200, 10.0)", ("native", "native", "native", "emulated", "native"),
        "FP4 is NVFP4 or MXFP4", ("ptx", "te", "cutlass"), _device("B200", 180, 8000, "b200", bits16=2250, int8=4500, fp8=4500, fp4=9000)),
    Row("amx", "CPU", "x86 with AMX (Sapphire Rapids on)", ("native", "native", "emulated", "emulated", "emulated"),
        "16 bits are BF16; 4-bit weights are widened to INT8", ("intel", "octavo")),
    Row("avx512vnni", "CPU", "x86 with AVX-512 VNNI", ("emulated", "native", "emulated", "emulated", "emulated"),
        "16-bit weights meet float32; 4-bit weights are widened to INT8", ("intel", "octavo")),
    Row("avx2", "CPU", "x86 with AVX2", ("emulated", "native", "emulated", "emulated", "emulated"),
        "INT8 in two instructions; 16-bit weights meet float32; 4-bit weights are widened to INT8", ("intel", "octavo")),
    Row("neon", "CPU", "Arm with NEON (dot product, Armv8.2)", ("native", "native", "emulated", "emulated", "emulated"),
        "16 bits are FP16, BF16 from Armv8.6 on; Octavo's portable kernels widen them to float32", ("arm", "octavo")),
    Row("tpu4", "TPU", "TPU v4", ("native", "native", "no", "emulated", "no"),
        "16 bits are BF16; INT8 at the rate of BF16", ("tpu4", "tpu", "jax"), _device("TPU v4", 32, 1200, "tpu4", bits16=275, int8=275)),
    Row("tpu5e", "TPU", "TPU v5e", ("native", "native", "emulated", "native", "no"),
        "16 bits are BF16; INT8 at twice, INT4 at four times its rate; FP8 is widened", ("tpu5e", "tpu", "jax"),
        _device("TPU v5e", 16, 819, "tpu5e", bits16=197, int8=393, int4=788)),
    Row("inf1", "Inferentia", "Inferentia 1 (Inf1)", ("native", "native", "no", "no", "no"),
        "the chip multiplies INT8, the SDK's list of types has FP32, FP16 and BF16", ("inf1", "neuron"),
        _device("Inferentia 1", 8, 50, "inf1", bits16=64, int8=128)),
    Row("inf2", "Inferentia", "Inferentia 2 (Inf2)", ("native", "native", "native", "no", "no"),
        "FP8 is AWS's configurable cFP8", ("inf2", "neuron"), _device("Inferentia 2", 32, 820, "inf2", bits16=190, int8=380, fp8=190)),
)
DEVICES = {row.device.name: row.device for row in MATRIX if row.device is not None}

# Least compute capability of each generation, the newest first.
_GENERATIONS = (((10, 0), "blackwell"), ((9, 0), "hopper"), ((8, 9), "ada"), ((8, 0), "ampere"), ((7, 5), "turing"), ((7, 0), "volta"))


def rows_of(machine: Machine) -> frozenset[str]:
    """Keys of the rows that this machine is: its CPU by the kernels that run, and its GPUs by their compute capability."""
    found = {"avx512vnni" if machine.isa == "avx512bf16" else machine.isa} & {"amx", "avx512vnni", "avx2"}
    if machine.features & {"neon", "asimd", "dotprod", "asimddp"}:
        found.add("neon")
    for gpu in machine.gpus:
        found |= set([key for since, key in _GENERATIONS if since <= gpu.capability][:1])
    return frozenset(found)
