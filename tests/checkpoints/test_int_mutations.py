"""Mutated GPTQ, AWQ, AutoRound and HQQ folders: headers, numbers and configs. Refused or read, never a crash, a hang or memory beyond the file's order."""

from __future__ import annotations

import copy
import json
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fuzzing.mutations import JUNK, NUMBERS, bytes_anywhere
from safetensors.numpy import save
from safetensors.torch import load_file as load_torch
from safetensors.torch import save as save_torch

from octavo.errors import OctavoError

from .int_files import AT
from .test_auto_round_codec import config as auto_round_config
from .test_auto_round_codec import tensors_of as auto_round_tensors
from .test_awq_codec import config as awq_config
from .test_awq_codec import tensors_of as awq_tensors
from .test_gptq_codec import GOLDEN, config
from .test_hqq_codec import CONFIG as HQQ
from .test_mutations import mutate_json, read_everything

TIMES = 300
GPTQ = {"dynamic": {r"+:.*q_proj": {"bits": 3}, "-:lm_head": {}}, "desc_act": True, "pack_dtype": "int32", "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
ROUND = {"extra_config": {".*q_proj": {"bits": 4}, "lm_head": {"bits": 8}}}


def sources() -> dict[str, tuple[bytes, dict[str, Any]]]:
    hqq = load_torch(Path(__file__).parent / "golden" / "hqq.safetensors")
    return {
        "gptq": (save({f"{AT}.{part}": GOLDEN[f"3.ordered.v1.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx")}), {**config(4), **GPTQ}),
        "awq": (save(awq_tensors("g32")), awq_config("g32")),
        "auto_round": (save(auto_round_tensors("gptqmodel.4.asymmetric")), {**auto_round_config("gptqmodel.4.asymmetric"), **ROUND}),
        "hqq": (save_torch({f"{AT}.{name[2:]}": t for name, t in hqq.items() if name.startswith("3.") and not name.endswith("weight")}), HQQ)}


def mutate_config(quantization: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A few entries at any depth become junk, go, or appear."""
    changed = copy.deepcopy(quantization)
    for _ in range(rng.choice([1, 1, 2, 4])):
        inside = changed
        while (deeper := [v for v in inside.values() if isinstance(v, dict) and v]) and rng.random() < 0.5:
            inside = rng.choice(deeper)
        key = rng.choice([*inside, "checkpoint_format", "a(", "(.*)*x", "+:(a|a)*b"])
        if key != "quant_method":
            inside[key] = rng.choice([*JUNK, *NUMBERS, {"bits": 8}, "gptq_v2", "int64"])
    return changed


@pytest.mark.parametrize("method", ["gptq", "awq", "auto_round", "hqq"])
def test_mutations(method: str, tmp_path: Path) -> None:
    data, quantization = sources()[method]
    (length,) = struct.unpack("<Q", data[:8])
    refused = read = 0
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "tiny", "quantization_config": quantization}))
    read_everything(tmp_path)  # most of what is imported and kept from the first time on is not counted
    tracemalloc.start()
    try:
        for seed in range(TIMES):
            rng = random.Random(seed)
            kind, changed, asked = rng.randrange(4), data, quantization
            if kind == 0:
                changed = mutate_json(data, rng)
            elif kind == 1:
                changed = bytes_anywhere(data, 0, 8 + length, rng)
            elif kind == 2:
                changed = data[: 8 + length] + bytes_anywhere(data[8 + length :], 0, len(data) - 8 - length, rng)
            else:
                asked = mutate_config(quantization, rng)
            (tmp_path / "model.safetensors").write_bytes(changed)
            (tmp_path / "config.json").write_text(json.dumps({"model_type": "tiny", "quantization_config": asked}))
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.process_time()
            try:
                read_everything(tmp_path)
                read += 1
            except OctavoError as error:
                refused += 1
                assert "\n" not in str(error), f"seed {seed}"
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            assert time.process_time() - started < 2, f"seed {seed} took too long"
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 32 * len(data) + (4 << 20), f"seed {seed}: {peak} bytes for a file of {len(data)}"
    finally:
        tracemalloc.stop()
    assert refused > TIMES // 4 and read
