"""The names that people already use, as this project's grammar. A name that means different things to different tools says whose it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

PRESETS = ("32bit", "16bit", "8bit", "4bit")  # resolved by choose(): they depend on the machine


@dataclass(frozen=True)
class Name:
    """`spelling` as its tool writes it, `meaning` in the grammar, `source` whose name it is, `note` what the grammar cannot say."""

    spelling: str
    meaning: str
    source: str
    note: str = ""


_PLAIN = "plain name"
_FASTDEPLOY = "FastDeploy"
_COMPRESSED = "compressed-tensors"
_MODELOPT = "ModelOpt"
_GGUF = "llama.cpp"
_BNB = "bitsandbytes"
_TORCHAO = "torchao"
_MIXED = "llama.cpp stores some tensors with more bits; this is the type of most"
_CALIBRATED = "static activation scales come from calibration"

_ALL = (
    Name("fp32", "W32A32C32", _PLAIN), Name("float32", "W32A32C32", _PLAIN), Name("F32", "W32A32C32", _GGUF),
    Name("bf16", "W16A16C16", _PLAIN), Name("bfloat16", "W16A16C16", _PLAIN),
    Name("fp16", "Wfp16Afp16Cfp16", _PLAIN), Name("float16", "Wfp16Afp16Cfp16", _PLAIN), Name("F16", "Wfp16Afp16Cfp16", _GGUF),
    Name("weight-only int8", "W8A16", _PLAIN), Name("weight-only int4", "W4A16", _PLAIN), Name("weight-only int2", "W2g64A16", _PLAIN),
    Name("weight-only nf4", "WNF4A16", _PLAIN), Name("int8", "W8A8", _COMPRESSED), Name("int4", "W4A16", _PLAIN),
    Name("wint8", "W8A16", _FASTDEPLOY), Name("wint4", "W4A16", _FASTDEPLOY), Name("wint2", "W2g64A16", _FASTDEPLOY),
    Name("w4w2", "W2g64A16", _FASTDEPLOY, "its moe_quant_type for wint2"),
    Name("block_wise_fp8", "Wfp8b128x128Afp8g128", _FASTDEPLOY), Name("tensor_wise_fp8", "Wfp8tAfp8ts", _FASTDEPLOY, _CALIBRATED),
    Name("FP8", "Wfp8tAfp8ts", _COMPRESSED, _CALIBRATED + "; FP8_DYNAMIC needs none"), Name("FP8_DYNAMIC", "Wfp8Afp8", _COMPRESSED),
    Name("FP8_BLOCK", "Wfp8b128x128Afp8g128", _COMPRESSED), Name("W4A16_ASYM", "W4zA16", _COMPRESSED),
    Name("NVFP4A16", "Wnvfp4A16", _COMPRESSED), Name("NVFP4", "Wnvfp4Anvfp4", _COMPRESSED),
    Name("MXFP4A16", "Wmxfp4A16", _COMPRESSED), Name("MXFP4", "Wmxfp4Amxfp4", _COMPRESSED),
    Name("MXFP8A16", "Wmxfp8A16", _COMPRESSED), Name("MXFP8", "Wmxfp8Amxfp8", _COMPRESSED),
    Name("FP8_PER_CHANNEL_PER_TOKEN", "Wfp8Afp8", _MODELOPT), Name("W4A16_AWQ", "W4A16", _MODELOPT),
    Name("W4A8_AWQ", "W4Afp8ts", _MODELOPT, _CALIBRATED), Name("W8A8_SQ_PER_CHANNEL", "W8A8ts", _MODELOPT, _CALIBRATED),
    Name("W4A16_NVFP4", "Wnvfp4A16", _MODELOPT), Name("NVFP4_AWQ", "Wnvfp4Anvfp4", _MODELOPT),
    Name("W4A8_NVFP4_FP8", "Wnvfp4Afp8ts", _MODELOPT, _CALIBRATED), Name("W4A8_MXFP4_FP8", "Wmxfp4Afp8ts", _MODELOPT, _CALIBRATED),
    Name("nf4", "WNF4A16", _BNB), Name("fp4", "WFP4A16", _BNB), Name("bnb-nf4", "WNF4A16", _BNB), Name("bnb-fp4", "WFP4A16", _BNB),
    Name("LLM.int8()", "W8A8o6", _BNB, "each row for itself; another llm_int8_threshold: W8A8o4"),
    Name("EETQ", "W8A16", "EETQ"),
    Name("int8_weight_only", "W8A16", _TORCHAO), Name("int4_weight_only", "W4zA16", _TORCHAO),
    Name("int8_dynamic_activation_int8_weight", "W8A8", _TORCHAO), Name("int8_dynamic_activation_int4_weight", "W4g32A8", _TORCHAO),
    Name("float8_dynamic_activation_float8_weight", "Wfp8tAfp8t", _TORCHAO),
    Name("Q4_0", "W4g32A16", _GGUF), Name("Q4_1", "W4g32zA16", _GGUF), Name("Q5_0", "W5g32A16", _GGUF), Name("Q5_1", "W5g32zA16", _GGUF),
    Name("Q8_0", "W8g32A16", _GGUF),
    *(Name(f"Q2_K{size}", "W2g16zA16", _GGUF, _MIXED) for size in ("", "_S")),
    *(Name(f"Q3_K{size}", "W3g16A16", _GGUF, _MIXED) for size in ("", "_S", "_M", "_L")),
    *(Name(f"Q4_K{size}", "W4g32zA16", _GGUF, _MIXED) for size in ("", "_S", "_M")),
    *(Name(f"Q5_K{size}", "W5g32zA16", _GGUF, _MIXED) for size in ("", "_S", "_M")),
    Name("Q6_K", "W6g16A16", _GGUF), Name("Q8_K", "W8g256@fp32A16", _GGUF),
    Name("IQ4_NL", "Wiq4nlA16", _GGUF, _MIXED), Name("IQ4_XS", "Wiq4nl@fp32A16", _GGUF, _MIXED), Name("TQ1_0", "W2g256A16", _GGUF, _MIXED),
    Name("MXFP4_MOE", "Wmxfp4A16", _GGUF, "experts only there"),
)


def normalize(name: str) -> str:
    """Lower case, without blanks and marks between words."""
    return "".join(c for c in name.lower() if c.isalnum())


NAMES: dict[str, Name] = {normalize(name.spelling): name for name in _ALL}

# Names of the grammar itself that are worth suggesting.
_COMMON = ("W8A8", "W8A8C8", "W8A8C16", "W8A16", "W4A16", "W4A16C16", "W4g64A8", "W4g64A16", "W4g128zA8C8", "W4Afp8", "Wfp8Afp8", "WNF4",
           "WNF4A8C8", "Wmxfp4A16", "Wnvfp4Anvfp4Cfp8", "WInt4", "WInt8", "W16A16C8", "C8")


@cache
def known_names() -> tuple[str, ...]:
    """Every name worth suggesting: presets, the grammar's common names, other tools' names."""
    return (*PRESETS, *_COMMON, *(name.spelling for name in _ALL))
