"""10,000 mutated headers, byte by byte and by structure: refused or read, never a crash, a hang or memory beyond the file's order."""

from __future__ import annotations

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzzing.mutations import JUNK, NUMBERS, bytes_anywhere
from gguf import GGUFWriter

from octavo.checkpoints import open_checkpoint
from octavo.errors import OctavoError

from .checkpoint_files import add_vocabulary

TIMES = 5000
SECONDS_EACH = 2.0


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A change in the meaning of a safetensors header."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice([1, 1, 2, 5])):
        name = rng.choice(list(header))
        entry = header[name]
        match rng.randrange(6):
            case 0:
                header[name] = rng.choice(JUNK)
            case 1 if isinstance(entry, dict):
                entry[rng.choice(["dtype", "shape", "data_offsets", "other"])] = rng.choice(JUNK)
            case 2 if isinstance(entry, dict) and isinstance(entry.get("data_offsets"), list):
                entry["data_offsets"] = [rng.choice([*NUMBERS, len(data)]), rng.choice([*NUMBERS, len(data)])]
            case 3 if isinstance(entry, dict) and isinstance(entry.get("shape"), list):
                entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
            case 4:
                header[rng.choice(["", "__metadata__", "a" * 300, "model.layers.99999999999.x"])] = header.pop(name)
            case _:
                header.pop(name)
        if not header:
            break
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) + rng.choice([0, 0, 0, 1, -1])) + text + data[8 + length :]


def mutate_fields(data: bytes, fields: list[int], rng: random.Random) -> bytes:
    """Other numbers in the counts, lengths, types and offsets of a GGUF file."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.choice(fields)
        width = rng.choice(["<I", "<Q"])
        number = rng.choice([*NUMBERS, len(data), len(data) - at, rng.randrange(64)])
        changed[at : at + struct.calcsize(width)] = struct.pack(width, number & (0xFFFFFFFF if width == "<I" else 2**64 - 1))
    return bytes(changed)


def read_everything(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint.tensors:
        try:
            checkpoint.read(name)
        except OctavoError as error:
            assert "\n" not in str(error)
    if path.is_file():  # a GGUF's tokenizer comes out of what was mutated
        checkpoint.tokenizer_files()


def survive(path: Path, file: Path, mutation: Callable[[random.Random], bytes]) -> int:
    """Read TIMES mutations; returns how many were refused."""
    refused = 0
    read_everything(path)  # sound still: what the first reading imports is no memory of a mutation
    tracemalloc.start()
    try:
        for seed in range(TIMES):
            data = mutation(random.Random(seed))
            file.write_bytes(data)
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                read_everything(path)
            except OctavoError as error:
                refused += 1
                assert "\n" not in str(error), f"seed {seed}"
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            assert time.perf_counter() - started < SECONDS_EACH, f"seed {seed} took too long"
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < 16 * len(data) + (1 << 19), f"seed {seed}: {peak} bytes for a file of {len(data)}"
    finally:
        tracemalloc.stop()
    return refused


def test_safetensors_headers(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    refused = survive(folder, file, lambda rng: mutate_json(data, rng) if rng.random() < 0.5 else bytes_anywhere(data, 0, 8 + length, rng))
    assert TIMES // 2 < refused < TIMES


def test_gguf_headers(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    for add, value in ((writer.add_block_count, 1), (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_feed_forward_length, 32),
                       (writer.add_head_count, 2), (writer.add_head_count_kv, 1), (writer.add_vocab_size, 40)):
        add(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_array("x.nested", [[1, 2], [3, 4]])
    add_vocabulary(writer, "gpt2")
    shapes = {"token_embd.weight": (40, 32), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32), "output_norm.weight": (32,),
              "rope_freqs.weight": (8,)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    end = data.index(b"rope_freqs.weight") + 40
    # Numbers begin after every name and text: more than enough places to hit each count, length, type and offset.
    fields = sorted({at for at in range(4, end) if data[at - 1] >= 32 or data[at] < 32})
    read_everything(path)
    refused = survive(path, path, lambda rng: mutate_fields(data, fields, rng) if rng.random() < 0.5 else bytes_anywhere(data, 0, end, rng))
    assert TIMES // 2 < refused < TIMES


@pytest.mark.parametrize("text", [b'{"a' * 200_000, b'"' + b'\\"' * 500_000, b"[" * 1_000_000, b'{"a":' * 200_000, b"1" * 1_000_000])
def test_json_is_scanned_in_linear_time(text: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    started = time.perf_counter()
    with pytest.raises(OctavoError):
        open_checkpoint(folder)
    assert time.perf_counter() - started < SECONDS_EACH
