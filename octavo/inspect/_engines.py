"""What other engines load: a table of rules out of their own sources. A rule is as of its engine's version; engines move on.

Formats are named as codecs are. `bits`, `groups` (-1: one scale per row) and `symmetric` bound what is loaded; None: no bound known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rule:
    bits: tuple[int, ...] | None = None
    groups: tuple[int, ...] | None = None
    symmetric: bool = False
    act_order: bool = True
    algorithms: tuple[str, ...] | None = None   # ModelOpt's quant_algo
    types: tuple[str, ...] | None = None        # GGUF's tensor types
    caches: tuple[str, ...] | None = None       # strategies of compressed-tensors' kv_cache_scheme
    note: str = ""
    source: str = ""


@dataclass(frozen=True)
class Engine:
    """checked: when its source was read; families: model types that are sure to be known (others are not judged)."""

    name: str
    version: str
    checked: str
    families: tuple[str, ...]
    formats: Mapping[str, Rule]
    refusals: Mapping[str, str] = field(default_factory=dict)  # format -> why, where the table above lacks it


_FAMILIES = ("llama", "mistral", "smollm3", "qwen2", "qwen3", "gemma3", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "deepseek_v3", "gemma2",
             "phi3")
_MARLIN = (-1, 32, 64, 128)
_OWN = "a format of Octavo's own cache"
_ELSEWHERE = "a format of FastDeploy"
_VLLM = "vllm/model_executor/layers/quantization/"
_GGML = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
         "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")

ENGINES = (
    Engine("vLLM", "main", "2026-11", _FAMILIES, {
        "safetensors": Rule(), "fp8": Rule(source=_VLLM + "fp8.py"), "fbgemm_fp8": Rule(note="deprecated there", source=_VLLM + "__init__.py"),
        "gptq": Rule((4, 8), _MARLIN, symmetric=True, source=_VLLM + "auto_gptq.py TYPE_MAP; utils/marlin_utils.py MARLIN_SUPPORTED_GROUP_SIZES"),
        "awq": Rule((4,), _MARLIN, source=_VLLM + "auto_awq.py"),
        "auto_round": Rule((2, 3, 4, 8), source=_VLLM + "inc"),
        "bitsandbytes": Rule(source=_VLLM + "bitsandbytes.py"),
        "compressed_tensors": Rule((2, 3, 4, 5, 6, 7, 8), caches=("tensor", "attn_head"),
                                   source=_VLLM + "compressed_tensors/schemes (WNA16_SUPPORTED_TYPES_MAP), compressed_tensors.py validate_kv_cache_scheme"),
        "modelopt": Rule(algorithms=("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8", "MIXED_PRECISION"),
                         source=_VLLM + "modelopt.py QUANT_ALGOS"),
        "mxfp4": Rule(source=_VLLM + "mxfp4.py"), "torchao": Rule(note="needs torchao installed", source=_VLLM + "torchao.py"),
        "gguf": Rule(types=_GGML, note="experimental there: one file, and --tokenizer of the original model is advised", source=_VLLM + "gguf.py"),
    }, {"hqq": "its list of methods has no hqq", "octavo": _OWN, "fastdeploy": _ELSEWHERE}),
    Engine("SGLang", "main", "2026-11", _FAMILIES, {
        "safetensors": Rule(), "fp8": Rule(), "gptq": Rule((4, 8), _MARLIN, symmetric=True, note="2 and 3 bits only through the older kernels of vLLM",
                                                          source="sglang/srt/layers/quantization/gptq.py, marlin_utils.py"),
        "awq": Rule((4,), _MARLIN, source="sglang/srt/layers/quantization/awq.py"), "auto_round": Rule((4, 8)), "bitsandbytes": Rule(),
        "compressed_tensors": Rule((4, 8), source="sglang/srt/layers/quantization/compressed_tensors (WNA16_SUPPORTED_TYPES_MAP)"),
        "modelopt": Rule(algorithms=("FP8", "NVFP4", "MIXED_PRECISION"), source="sglang/srt/layers/quantization/__init__.py: modelopt_fp8, _fp4, _mixed"),
        "mxfp4": Rule(source="sglang/srt/layers/quantization/__init__.py, on CUDA and gfx95"), "gguf": Rule(types=_GGML),
    }, {"hqq": "its list of methods has no hqq", "torchao": "it quantizes with torchao as it loads, and reads no such checkpoints",
        "fbgemm_fp8": "its list of methods has no fbgemm_fp8", "octavo": _OWN, "fastdeploy": _ELSEWHERE}),
    Engine("transformers", "5.23", "2026-11", _FAMILIES, {
        "safetensors": Rule(), "fp8": Rule(note="on a GPU, or dequantized"), "fbgemm_fp8": Rule(), "gptq": Rule((2, 3, 4, 8), note="needs gptqmodel"),
        "awq": Rule((4,), note="needs gptqmodel or autoawq"), "auto_round": Rule(note="needs auto-round"), "bitsandbytes": Rule(note="needs bitsandbytes"),
        "compressed_tensors": Rule(note="needs compressed-tensors"), "mxfp4": Rule(), "hqq": Rule(note="needs hqq"), "torchao": Rule(note="needs torchao"),
        "gguf": Rule(note="dequantized as it loads", source="transformers/integrations/ggml.py"),
    }, {"modelopt": "AUTO_QUANTIZATION_CONFIG_MAPPING has no modelopt", "octavo": _OWN, "fastdeploy": _ELSEWHERE}),
    Engine("llama.cpp", "ggml 0.25", "2026-11", _FAMILIES, {"gguf": Rule(source="gguf/constants.py: architectures and types")}),
)
