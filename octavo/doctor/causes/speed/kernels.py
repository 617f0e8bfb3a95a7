"""Kernels: which instruction set computes, and whether this processor has a better one."""

from __future__ import annotations

from ....settings import read_settings
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

FALLBACK = Disorder("fallback_kernels", "error", "the kernels of a lesser instruction set run than this processor has", "let the best be chosen")
REFERENCE = Disorder("reference_backend", "error", "the reference backend computes: it is there to be exact, not fast", "leave --backend out")
OLD = Disorder("no_vector_kernels", "error", "this processor lacks the instructions that fast kernels need: portable code runs",
               "a processor with AVX2 (Intel Haswell, AMD Zen, or later); in a virtual machine, pass the host's processor through")
VECTORS = "avx2"


def look(case: Case) -> Answer:
    machine, loaded = case.surroundings.machine, case.loaded
    if loaded.backend.name != "native":
        return Answer(f"the {loaded.backend.name} backend", (REFERENCE(loaded.backend.name, "NumPy in float64", case.command()),))
    runs, best = str(getattr(loaded.backend, "isa", "")), machine.isas[0]
    line = f"{runs} kernels; this processor ({machine.cpu or 'unnamed'}) offers {', '.join(machine.isas)}"
    if runs != best and runs in machine.isas:
        by = "--isa" if case.complaint.isa else f"OCTAVO_ISA={read_settings().isa}"
        command = case.command(isa=None)
        return Answer(line, (FALLBACK(runs, f"{line}; {by} says so", command if case.complaint.isa else f"env -u OCTAVO_ISA {command}"),))
    if best == "portable" and VECTORS not in machine.features:
        return Answer(line, (OLD(machine.cpu, f"{line}; it lacks AVX2"),))
    return Answer(line)


CAUSE = Cause(30, "which kernels run?", look, (FALLBACK, REFERENCE, OLD))
