"""PTX that turns packed codes into numbers of the tensor cores. tests/gpu/ptx.py runs it without a GPU, on every byte.

Element i of a result belongs to byte i of the input. For 16-bit floats two bytes at a time (constraints "=r,h"), as Hopper's products read them from shared
memory: Triton would take wider reads apart and put them together again. For bytes, and for tables, four ("=r,r" and "=r,=r,r"). Left alone, Triton needs four
instructions and more to a weight; these sequences need 1.8 (integers), 2.8 (small floats) and 4.5 (any table of 16 numbers), which decides whether a product
with one row is limited by memory or by its own arithmetic. Each has one input and one result: only then does Triton's layout pass move it behind the read
from shared memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

INTEGERS_LOW = 64  # by which `integers` makes its numbers too small


def bf16_bits(value: float) -> int:
    """The bits of the bfloat16 nearest to a finite float32."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return int((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def integers(part: int) -> str:
    """Nibbles (`part` 0: the low ones) as the bfloat16 numbers (n - 8) / INTEGERS_LOW. The bits of n are the subnormal n * 2^-133, which one fused
    multiplication and addition makes n / 64 - 1 / 8, exactly; without constants in registers, of which the assembler would make a copy for each use."""
    return f"""{{
    .reg .b32 t, a, factor, less;
    cvt.u32.u16 t, $1;
    {_nibble(part, "t")}
    mov.b32 factor, 0x7F007F00;
    mov.b32 less, 0xBE00BE00;
    prmt.b32 a, t, 0x00000000, 0x4140;
    fma.rn.bf16x2 $0, a, factor, less;
    }}"""


def e2m1(part: int) -> str:
    """Nibbles as the bfloat16 numbers 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives: the bits slide into place, 2^126 mends the bias of the exponent."""
    return _floats("shl.b32 s, a, 4;" if part == 0 else "mov.b32 s, a;", 2 if part == 0 else 6, 0x01C0, 2.0**126)


def small_float(exponent: int) -> str:
    """Bytes of 1 sign, `exponent` and 7 - exponent mantissa bits (E4M3, E5M2) as bfloat16. NaN and infinity become large numbers: weights hold none."""
    shift = 8 - exponent
    return _floats("mov.b32 s, a;", shift, 0x7F00 >> shift, 2.0 ** (128 - 2 ** (exponent - 1)))


def table(values: Sequence[float], part: int) -> str:
    """Nibbles as the bfloat16 numbers nearest to values[nibble], of 16 values: two look-ups among eight for either byte, and a choice by the top bit."""
    bits = [bf16_bits(value) for value in values]
    return f"""{{
    .reg .b32 t, u, s, q, m, x, y, lo, hi;
    {_nibble(part)}
    {_selectors()}
    {_look_up("lo", [b & 0xFF for b in bits])}
    {_look_up("hi", [b >> 8 for b in bits])}
    prmt.b32 $0, lo, hi, 0x5140;
    prmt.b32 $1, lo, hi, 0x7362;
    }}"""


def byte_table(codes: Sequence[int], part: int) -> str:
    """Nibbles as the bytes codes[nibble], of 16 codes: INT4 as INT8, FP4 as FP8."""
    return f"""{{
    .reg .b32 t, u, s, q, m, x, y, lo;
    {_nibble(part, "$1")}
    {_selectors()}
    {_look_up("lo", list(codes))}
    mov.b32 $0, lo;
    }}"""


def _nibble(part: int, source: str = "$2") -> str:
    """t: the nibbles of `part`, a byte each. Operands are numbered results first, so the input's number depends on how many there are."""
    return f"and.b32 t, {source}, 0x0F0F0F0F;" if part == 0 else f"shr.u32 t, {source}, 4;\n    and.b32 t, t, 0x0F0F0F0F;"


def _selectors() -> str:
    """q: four selectors of 0..7 for prmt; m: a byte of ones where the nibble is 8 or more."""
    return """shr.u32 u, t, 4;
    or.b32 t, t, u;
    prmt.b32 s, t, 0x00000000, 0x4420;
    and.b32 q, s, 0x00007777;
    shr.u32 m, s, 3;
    and.b32 m, m, 0x00001111;
    prmt.b32 m, 0x0000FF00, 0x00000000, m;"""


def _look_up(name: str, codes: Sequence[int]) -> str:
    a, b, c, d = (sum(code << 8 * i for i, code in enumerate(codes[start : start + 4])) for start in (0, 4, 8, 12))
    return f"""prmt.b32 x, 0x{a:08X}, 0x{b:08X}, q;
    prmt.b32 y, 0x{c:08X}, 0x{d:08X}, q;
    lop3.b32 {name}, m, y, x, 0xCA;"""


def _floats(sign: str, shift: int, mask: int, scale: float) -> str:
    """Two bytes in the upper halves of 16-bit lanes; a lane's sign in bit 15, its other bits `shift` lower, times `scale`."""
    factor, mask = bf16_bits(scale) * 0x10001, mask * 0x10001
    return f"""{{
    .reg .b32 t, a, s, m, scale, none;
    mov.b32 scale, 0x{factor:08X};
    mov.b32 none, 0x80008000;
    cvt.u32.u16 t, $1;
    prmt.b32 a, t, 0x00000000, 0x1404;
    {sign}
    and.b32 s, s, 0x80008000;
    shr.u32 m, a, {shift};
    and.b32 m, m, 0x{mask:08X};
    or.b32 m, m, s;
    fma.rn.bf16x2 $0, m, scale, none;
    }}"""
