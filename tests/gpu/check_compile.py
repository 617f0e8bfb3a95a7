"""Compiles every kernel in every configuration of the cases for Ampere, Ada, Hopper and Blackwell, without a GPU, and writes what it found as a page:
python -m gpu.check_compile [--table FILE] [--only PATTERN] in tests/ (make test-triton; some minutes)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu.test_compile import ARCHITECTURES, judged, lines

HEAD = """# GPU kernels, compiled

Written by `make test-triton`: every kernel in the configurations that its launcher chooses for the shapes of `tests/gpu/linear_cases.py` and
`tests/gpu/ops_cases.py`, compiled by Triton {version} without a GPU. A cell holds registers of a thread and KiB of shared memory of a program (the GPU has
{shared}), and bytes of stack where something was spilled; empty: the GPU has no such arithmetic. `units`: what multiplies on Hopper, by the start of its
PTX instruction.

"""


def page(found: list[dict], version: str) -> str:
    """The table as Markdown, a row for each different kernel of a case."""
    cells: dict[tuple[str, str, int], dict[int, dict]] = {}
    seen: dict[tuple[str, str, int], int] = {}
    for line in found:
        place = line["case"], line["kernel"], line["arch"]
        seen[place] = seen.get(place, -1) + 1
        cells.setdefault((line["case"], line["kernel"], seen[place]), {})[line["arch"]] = line
    shared = ", ".join(f"{limit // 1024}" for limit in {line["arch"]: line["limit"] for line in found}.values())
    text = [HEAD.format(version=version, shared=shared), "| case | kernel | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " | units |\n",
            "|---|---|" + "---|" * len(ARCHITECTURES) + "---|\n"]
    rows = [f"| {case} | {kernel} | {' | '.join(cell(by.get(a)) for a in ARCHITECTURES)} | {units(by)} |\n" for (case, kernel, _), by in cells.items()]
    return "".join([*text, *dict.fromkeys(rows)])


def cell(line: dict | None) -> str:
    if line is None:
        return ""
    spilled = f", {line['stack']} spilled" if line["stack"] else ""
    return f"{line['registers']} r, {line['shared'] / 1024:.0f} K{spilled}"


def units(by: dict[int, dict]) -> str:
    return ", ".join(sorted({unit.split(".")[0] for unit in by.get(90, {}).get("units", [])}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    found = lines("--only", given.only)
    if given.table is not None:
        given.table.write_text(page(found, found[0]["triton"]))
    wrong = judged(found)
    print(*wrong, f"{len(found)} kernels compiled, {len(wrong)} beyond their limits", sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
