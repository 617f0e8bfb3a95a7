"""Kernels compile for Ampere, Ada, Hopper and Blackwell without a GPU, within registers and shared memory, and on the matrix units meant for them.

A few cases here, since each takes a second; all of them: check_compile.py (make test-triton).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MODULES = ["gpu.linear_cases", "gpu.ops_cases", "gpu.engine_cases"]
ARCHITECTURES = (80, 89, 90, 100)
FEW = r"^int4 g128, 1 rows$|^FP8 blocks, 4096|^embedding ints4"
# Bytes of stack that kernels may have: what the assembler keeps there though registers are left. With many rows a thread of a product holds 128 sums (of the
# tile, and of the step that its scales wait for; the wide kernel 256: it scales one product while the next one runs), and a few of them may be spilled.
STACK, PRODUCT_STACK = 16, 128


def lines(*options: str) -> list[dict]:
    """What compiled.py prints, from a process where Triton compiles."""
    env = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    run = subprocess.run([sys.executable, "-m", "gpu.compiled", "--cases", *MODULES, *options], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def judged(found: list[dict]) -> list[str]:
    """What is wrong with compiled kernels."""
    wrong = []
    for line in found:
        name = f"{line['case']} ({line['kernel']}, sm_{line['arch']})"
        if line["shared"] > line["limit"]:
            wrong.append(f"{name}: {line['shared']} bytes of shared memory, the GPU has {line['limit']}")
        if line["registers"] > 255 or line["stack"] > (PRODUCT_STACK if line["kernel"].startswith("multiply") else STACK):
            wrong.append(f"{name}: {line['registers']} registers, {line['stack']} bytes spilled")
        if line["kernel"].startswith("multiply") and not line["units"] and "fp32" not in line["case"]:
            wrong.append(f"{name}: no matrix unit is used")
    return wrong


def test_a_few_kernels_on_every_architecture() -> None:
    found = lines("--only", FEW)
    assert {line["arch"] for line in found} == set(ARCHITECTURES) and not judged(found)
    hopper = [line["units"] for line in found if line["arch"] == 90 and line["kernel"].startswith("multiply")]
    assert all(any(unit.startswith("wgmma") for unit in units) for units in hopper), hopper
