"""The few PTX instructions of octavo/kernels/triton/_nibbles.py in NumPy, so that its sequences can be tried on every byte without a GPU.

Source: PTX ISA 8.x, "Integer Arithmetic", "Logic and Shift", "prmt", "lop3", "fma" (bf16x2).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

U32 = np.uint32


def run(text: str, source: np.ndarray, results: int) -> list[np.ndarray]:
    """The result registers uint32 [...] of a sequence whose input register is `source`; operands are numbered results first."""
    registers: dict[str, np.ndarray] = {f"${results}": source.astype(U32)}
    for line in (part.strip() for part in text.strip().strip("{}").split(";")):
        if not line or line.startswith(".reg"):
            continue
        name, rest = line.split(None, 1)
        target, *operands = (operand.strip() for operand in rest.split(","))
        values = [registers[o] if re.match(r"[$a-z]", o) else np.full_like(source, int(o, 0), U32) for o in operands]
        registers[target] = INSTRUCTIONS[name](*values)
    return [registers[f"${i}"] for i in range(results)]


def permuted(a: np.ndarray, b: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """prmt.b32: byte i of the result is one of the eight bytes of {b, a}, or eight copies of its sign where the selector's top bit is set."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros_like(a)
    for i in range(4):
        selector = (choice >> U32(4 * i)) & U32(15)
        byte = (both >> (8 * (selector & U32(7))).astype(np.uint64)).astype(U32) & U32(0xFF)
        byte = np.where(selector & U32(8), np.where(byte & U32(0x80), U32(0xFF), U32(0)), byte)
        result |= byte << U32(8 * i)
    return result


def chosen(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: np.ndarray) -> np.ndarray:
    """lop3.b32: bit i of the table for the inputs' bits a b c, read as a number i."""
    result = np.zeros_like(a)
    for i in range(8):
        match = (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        result |= np.where((table >> U32(i)) & U32(1), match, U32(0))
    return result


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fma.rn.bf16x2: both halves as bfloat16, one rounding (to nearest even), subnormal numbers kept."""
    result = np.zeros_like(a)
    for shift in (0, 16):
        x, y, z = ((((v >> U32(shift)) & U32(0xFFFF)) << U32(16)).view(np.float32).astype(np.float64) for v in (a, b, c))
        bits = (x * y + z).astype(np.float32).view(U32)  # float64 holds product and sum of such numbers
        result |= ((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16)) << U32(shift)
    return result


INSTRUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "cvt.u32.u16": lambda a: a & U32(0xFFFF),
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shl.b32": lambda a, b: a << b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": permuted,
    "lop3.b32": chosen,
    "fma.rn.bf16x2": fused,
}
