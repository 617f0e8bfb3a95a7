"""Candidates with the measurements of a made-up machine: bytes at a bandwidth, operations at a rate, the larger counts."""

from __future__ import annotations

import math

from octavo.advise import Candidate, Step

BATCHES = (1, 2, 4, 8, 16, 32)
WEIGHTS = 100e6  # numbers in weights


def candidate(name: str, bits: float, kl: float, *, rate: float = 400e9, bandwidth: float = 20e9, kv: int = 10_000, deviation: float = 0.0, runs: bool = True,
              kl_high: float = math.nan, law: str = "max") -> Candidate:
    """rate: operations a second. law: how reading and computing add up (max, sum)."""
    weight = WEIGHTS * bits / 8

    def step(rows: int) -> Step:
        operations = 2 * WEIGHTS * rows
        reading, computing = weight / bandwidth, operations / rate
        return Step(rows, max(reading, computing) if law == "max" else reading + computing, deviation, weight, 0.0, operations)

    return Candidate(name, f"W{bits:g}", kl, int(weight), kv, step(128), tuple(step(b) for b in BATCHES), fixed_bytes=50_000_000, kl_high=kl_high,
                     runs=runs, predicted="" if runs else "no memory")


def usual() -> list[Candidate]:
    """As on a CPU without 16-bit arithmetic: fewer bits read less, integers multiply twice as fast as floats."""
    return [candidate("16bit", 16, 0.0, rate=200e9), candidate("8bit", 8.25, 0.002), candidate("W8g64A8g64C8", 8.25, 0.004, kv=5_000),
            candidate("4bit", 4.25, 0.05), candidate("W4g64A8g64C8", 4.25, 0.055, kv=5_000), candidate("nf4", 4.5, 0.03, rate=100e9),
            candidate("wint2", 2.25, 0.9)]
