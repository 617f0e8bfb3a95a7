"""Mutations of a checkpoint's files. Each takes bytes (or JSON) and a random source; the same seed gives the same mutation."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

NUMBERS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 31, 32, 33, 64, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**62, 2**63 - 1, 2**63, 2**64 - 1]
JUNK: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 4, 8, 16, 32, 64, 1.5, 2**53, 2**64, 10**30, "", "int", "float", "group", "channel", "block", "tensor",
                   "F32", "BF16", "U8", "I64", "x" * 50, "re:.*", "re:(a+)+$", "Linear", [], {}, [0], [-1], [[0]], [1, 2, 3], [2**62] * 3, {"shape": []},
                   "\ud800", "\x1b[2J", 1e400]
TYPES = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "BOOL", "C64", "U32"]


def junk(rng: random.Random) -> Any:
    """A copy: what is put into a config may be changed there."""
    return copy.deepcopy(rng.choice(JUNK))


def bytes_anywhere(data: bytes, first: int, end: int, rng: random.Random) -> bytes:
    """A few random changes from `first` to `end`."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(first, max(first + 1, min(end, len(changed))))
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(changed):
                changed[at : at + 1] = bytes([changed[at] ^ (1 << rng.randrange(8))])
            case 2:
                changed[at : at + 8] = struct.pack("<Q", rng.choice([*NUMBERS, len(data), len(data) - at]))
            case 3:
                changed[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
            case 4:
                del changed[at : at + rng.choice([1, 4, 8, 64])]
            case 5:
                changed[at:at] = changed[at : at + rng.choice([1, 8, 64])]
            case _:
                del changed[at:]
        if not changed:
            break
    return bytes(changed)


def header_of(data: bytes) -> tuple[dict[str, Any], int]:
    """(header, where the data begin) of a sound safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def with_header(header: dict[str, Any], data: bytes) -> bytes:
    """`data` without its own header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_claims(data: bytes, rng: random.Random) -> bytes:
    """Other types, shapes, places and names: junk, and claims that fit the bytes as well as the true ones."""
    header, begin = header_of(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        names = [name for name, entry in header.items() if isinstance(entry, dict) and isinstance(entry.get("shape"), list) and name != "__metadata__"]
        if not names:
            break
        name, other = rng.choice(names), rng.choice(names)
        entry = header[name]
        match rng.randrange(13):
            case 12 if isinstance(said := header.get("__metadata__"), dict) and said:
                key = rng.choice(list(said))
                said[key] = str(said[key])
                said[key] = rng.choice(["", "x", "{}", "[1]", said[key][:-1], said[key].replace("2", "3"), said[key].replace("null", "7"), "[" * 500])
            case 0:
                header[name] = junk(rng)
            case 1:
                entry[rng.choice(["dtype", "shape", "data_offsets", "other"])] = junk(rng)
            case 2:
                entry["data_offsets"] = [rng.choice([*NUMBERS, len(data)]), rng.choice([*NUMBERS, len(data)])]
            case 3:
                entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
            case 4:
                header[rng.choice(["", "__metadata__", "a" * 300, "model.layers.99999999999.x"])] = header.pop(name)
            case 5:
                header.pop(name)
            case 6:
                entry["shape"] = entry["shape"][::-1]
            case 7 if len(entry["shape"]) > 1 and all(type(n) is int for n in entry["shape"]) and entry["shape"][0] % 2 == 0:
                entry["shape"] = [entry["shape"][0] // 2, *entry["shape"][1:-1], entry["shape"][-1] * 2]
            case 8:
                entry["dtype"] = rng.choice(TYPES)
            case 9:  # another tensor's bytes under this name
                header[name], header[other] = header[other], header[name]
            case 10:
                entry["shape"] = [*entry["shape"], 1] if rng.random() < 0.5 else [1, *entry["shape"]]
            case _:
                stem, _, tail = name.rpartition(".")
                header[f"{stem}.{rng.choice(['weight', 'bias', 'qweight', 'scales', 'weight_scale', 'weight_packed', 'g_idx', tail + 'x'])}"] = header.pop(name)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) + rng.choice([0] * 6 + [1, -1])) + text + data[begin:]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bits inside tensors: each tensor is as likely as any other, so that scales and zero points get their share."""
    header, begin = header_of(data)
    changed = bytearray(data)
    entries = [entry for name, entry in header.items() if name != "__metadata__" and entry["data_offsets"][1] > entry["data_offsets"][0]]
    for _ in range(rng.choice([1, 1, 4, 32])):
        first, last = rng.choice(entries)["data_offsets"]
        at = begin + rng.randrange(first, last)
        if rng.random() < 0.3:
            two = rng.choice([b"\xff\xff", b"\x00\x00", b"\x00\x7c", b"\x80\x7f", b"\x00\x80"])[: begin + last - at]
            changed[at : at + len(two)] = two
        else:
            changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def config_fields(config: dict[str, Any], rng: random.Random, whole: bool) -> dict[str, Any]:
    """Other values somewhere in quantization_config (`whole`: in all of the config)."""
    changed = copy.deepcopy(config)
    for _ in range(rng.choice([1, 1, 2, 3])):
        holder: Any = changed if whole or "quantization_config" not in changed else changed["quantization_config"]
        for _ in range(rng.randrange(6)):
            inner = [part for part in (holder.values() if isinstance(holder, dict) else holder) if isinstance(part, (dict, list)) and part]
            if not inner or rng.random() < 0.3:
                break
            holder = rng.choice(inner)
        if not holder:
            continue
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        value = holder[key]
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                holder.pop(key)
            case 1 if isinstance(value, bool):
                holder[key] = not value
            case 2 if type(value) is int:
                holder[key] = rng.choice([value + 1, value - 1, value * 2, value // 2, -value, *NUMBERS])
            case 3 if isinstance(holder, dict):
                holder[rng.choice(["bits", "group_size", "num_bits", "dynamic", "targets", "format", "extra_config", "quant_method", "version"])] = junk(rng)
            case _:
                holder[key] = junk(rng)
    return changed


def gguf_fields(data: bytes, fields: list[int], rng: random.Random) -> bytes:
    """Other numbers in the counts, lengths, types and offsets of a GGUF file."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(fields)
        width = rng.choice(["<I", "<Q"])
        number = rng.choice([*NUMBERS, len(data), len(data) - at, rng.randrange(64)])
        changed[at : at + struct.calcsize(width)] = struct.pack(width, number & (0xFFFFFFFF if width == "<I" else 2**64 - 1))
    return bytes(changed)
