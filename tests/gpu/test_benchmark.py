"""benchmarks/gpu.py's own checks in the interpreter: they pass on sound kernels and see what is wrong."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from gpu_parts import check, random_model, shapes, timing
from gpu_parts.random_model import TINY, RandomCheckpoint
from gpu_parts.worker import answer

from octavo.schemes import TensorSpec

SMALL = {"id": "small", "module": "check", "weight": "int4 g128", "activation": "bf16", "n": 9, "k": 70, "rows": [3], "extras": False}


def test_sound_kernels_pass() -> None:
    found = answer(SMALL)
    assert found["failed"] == [] and found["checks"] >= 8 and found["worst"] < 1e-5
    assert answer({"id": "gates", "module": "check_ops", "what": "gates", "tiny": True})["failed"] == []


def test_wrong_numbers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = check.linear

    def wrong(x: torch.Tensor, *more: Any, **named: Any) -> list[torch.Tensor]:
        (y,) = usual(x, *more, **named)
        y[-1, -1] += 0.5
        return [torch.nan_to_num(y)]

    monkeypatch.setattr(check, "linear", wrong)
    text = " ".join(answer(SMALL)["failed"])
    assert "3 rows: error" in text and "the row with NaN is not NaN" in text and "infinity has numbers" in text


def test_codes_that_are_not_the_tensors_are_seen() -> None:
    q, weight = check.weight_of("int4 g128", 9, 70, TensorSpec("bf16"))
    look = check.Look(replace(weight, codes=weight.codes ^ 1), 2e-4)
    look.stored(q)
    assert len(look.failed) == 1 and "the weight's numbers are off" in look.failed[0]


def test_what_a_case_raises_is_its_result() -> None:
    assert answer({**SMALL, "weight": "int9"})["error"].startswith("KeyError")


def test_a_product_is_timed_against_peers() -> None:
    case = next(case for case in shapes.cases(True) if case["kind"] == "linear" and case["precision"] == "W8A8")
    (row,) = answer({**case, "n": 64, "k": 64, "rows": [2]})["rows_found"]
    assert {"bf16 cuBLAS", "torch _int_mm, without scales"} <= row["peers"].keys() and row["error"] < 0.01
    assert all(peer["error"] < 0.05 and peer["seconds"]["median"] > 0 for peer in row["peers"].values() if peer["alike"])


def test_all_ways_of_a_product_are_timed() -> None:
    (case,) = shapes.ways(True)
    found = answer(case)
    assert "usual" in found["ways"] and len(found["ways"]) > 3 and not found["refused"]
    assert all(way["error"] < 0.01 and way["ratio"]["median"] > 0 for way in found["ways"].values())


def test_random_weights_are_the_same_however_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_model, "RING", 4099)
    checkpoint = RandomCheckpoint(TINY)
    name = "model.layers.0.mlp.up_proj.weight"
    whole = checkpoint.read(name).codes
    assert np.array_equal(whole, np.concatenate([checkpoint.read(name, slice(at, at + 16)).codes for at in range(0, len(whole), 16)]))
    values = checkpoint.read(name).dequantize()
    assert values.shape == (64, 32) and abs(values.std() - 0.02) < 0.002 and (checkpoint.read("model.norm.weight").codes == 1).all()


class Device:
    """What torch.cuda is asked while times are taken; its clock goes on by a millisecond with every call that runs."""

    clock = 0.0
    capturing: list[Any] | None = None

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        device = self

        class Graph:
            def capture_begin(self, capture_error_mode: str) -> None:
                device.capturing = []

            def capture_end(self) -> None:
                self.kept, device.capturing = device.capturing, None
                if refuses:
                    raise RuntimeError("cannot be captured")

            def replay(self) -> None:
                device.clock += len(self.kept or ())

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = device.clock

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: Event) -> float:
                return other.at - self.at

        class Stream:
            def wait_stream(self, other: object) -> None:
                pass

        for name, fake in {"is_available": lambda: True, "synchronize": lambda: None, "CUDAGraph": Graph, "Event": Event, "Stream": Stream,
                           "current_stream": lambda: None, "stream": lambda stream: nullcontext()}.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def call(self) -> None:
        if self.capturing is None:
            self.clock += 1
        else:
            self.capturing.append(1)


def test_times_are_of_one_call_from_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    monkeypatch.setattr(timing, "GRAPH_SECONDS", 1e-2)
    candidate = timing.Candidate([device.call] * 3)
    assert candidate.captured and len(candidate.calls) == 9  # three calls take 3 ms, 10 ms are wanted
    assert timing.in_turn({"one": candidate}, 4)["one"] == pytest.approx([1e-3] * 4)
    plain = timing.Candidate([Device(monkeypatch, refuses=True).call])
    assert not plain.captured and plain.run() > 0
