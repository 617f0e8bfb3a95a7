"""Mutate the files of a codec's seeds, read what comes out, and judge it.

A mutated checkpoint is either refused, with one line, or loads and then every tensor in its files is accounted for, keeps the shape that the
model's config asks for, and has the numbers of before wherever its own bytes and the config are those of before. Nothing else may happen: no
other exception, no crash, no more than a moment, no more memory than a few times the file.

    PYTHONPATH=tests python -m fuzzing.run --files 50000      every codec in a process of its own (`make fuzz`)
    PYTHONPATH=tests python -m fuzzing.run --codec gptq --first 1234 --files 1      one mutation again
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.checkpoints import Checkpoint, open_checkpoint
from octavo.checkpoints.survey import survey
from octavo.errors import OctavoError

from . import mutations
from .seeds import SEEDS, model_path

SECONDS_EACH = 5.0
WATCHED = 4  # one file in so many is read with every allocation counted, which takes twice the time
SPACE = 3 << 30  # address space of a process that fuzzes


class TooSlowError(Exception):
    pass


class JudgedError(AssertionError):
    """What a mutated checkpoint must not do."""


@dataclass
class Sound:
    """A seed: its files, the tensors that they hold and the numbers that these stand for."""

    folder: Path
    files: dict[str, bytes]
    values: dict[str, np.ndarray]
    parts: dict[str, tuple[str, ...]]
    stored: dict[str, tuple[str, tuple[int, ...], bytes]] = field(default_factory=dict)
    fields: list[int] = field(default_factory=list)
    head: int = 0
    metadata: list[Any] = field(default_factory=list)

    @property
    def gguf(self) -> bool:
        return any(name.endswith(".gguf") for name in self.files)


def sound(codec: str, name: str, folder: Path) -> Sound:
    SEEDS[codec][name](folder)
    checkpoint = open_checkpoint(model_path(folder))
    if checkpoint.codec != codec:
        raise ValueError(f"the seed {name!r} of {codec} is of {checkpoint.codec}")
    mutated = ("config.json", "hf_quant_config.json", "model.safetensors.index.json")
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".safetensors", ".gguf") or file.name in mutated}
    values = {n: checkpoint.read(n).dequantize() for n, info in checkpoint.tensors.items() if info.spec is not None}
    seed = Sound(folder, files, values, {n: info.parts or (n,) for n, info in checkpoint.tensors.items()})
    if seed.gguf:
        (data,) = files.values()
        seed.head = data.index(b"blk.0.ffn_norm") + 60
        seed.fields = [at for at in range(4, seed.head) if data[at - 1] >= 32 or data[at] < 32]
    else:
        seed.stored, seed.metadata = held(folder), metadata(folder)
    return seed


def held(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the files of a folder hold: name -> (type, shape, bytes)."""
    found = survey(folder)
    return {name: (entry.dtype, entry.shape, b"".join(piece.tobytes() for piece in found.bytes(name))) for name, entry in found.tensors.items()}


def metadata(folder: Path) -> list[Any]:
    """What the headers of a folder say beside the tensors."""
    return [mutations.header_of(file.read_bytes())[0].get("__metadata__") for file in sorted(folder.glob("*.safetensors"))]


def mutate(seed: Sound, rng: random.Random) -> tuple[str, str]:
    """Writes one mutated file; returns (its name, what was done)."""
    names = sorted(seed.files)
    if seed.gguf:
        (name,) = names
        data = seed.files[name]
        kind = rng.choice(["fields", "head", "data"])
        changed = mutations.gguf_fields(data, seed.fields, rng) if kind == "fields" else mutations.bytes_anywhere(
            data, 0 if kind == "head" else seed.head, seed.head if kind == "head" else len(data), rng)
    else:
        kind = rng.choice(["claims", "claims", "flips", "head", "config", "config", "config"])
        if kind == "config":
            name = rng.choice([n for n in names if n.endswith(".json")])
            config = json.loads(seed.files[name])
            whole = name != "config.json" or "quantization_config" not in config or rng.random() < 0.2
            kind = "all of the config" if whole else "quantization_config"
            changed = json.dumps(mutations.config_fields(config, rng, whole)).encode() if rng.random() < 0.95 else mutations.bytes_anywhere(
                seed.files[name], 0, len(seed.files[name]), rng)
        else:
            name = rng.choice([n for n in names if n.endswith(".safetensors")])
            data = seed.files[name]
            changed = mutations.header_claims(data, rng) if kind == "claims" else mutations.flipped(data, rng) if kind == "flips" else \
                mutations.bytes_anywhere(data, 0, mutations.header_of(data)[1], rng)
    (seed.folder / name).write_bytes(changed)
    return name, kind


def judge(seed: Sound, name: str) -> str:
    """"refused" or "loaded"; raises JudgedError."""
    try:
        checkpoint = open_checkpoint(model_path(seed.folder))
        refusals, values = read_all(checkpoint)
        if seed.gguf:
            checkpoint.tokenizer_files()
    except OctavoError as error:
        one_line(error)
        return "refused"
    if seed.gguf:
        judge_file(seed, checkpoint, values)
    else:
        judge_folder(seed, checkpoint, values, refusals, same_config=name.endswith(".safetensors") and metadata(seed.folder) == seed.metadata)
    return "refused" if refusals else "loaded"


def one_line(error: OctavoError) -> None:
    text = str(error)
    if "\n" in text or not text.isprintable() or len(text) > 2000:
        raise JudgedError(f"the refusal is no plain line: {text[:300]!r}")


def read_all(checkpoint: Checkpoint) -> tuple[set[str], dict[str, np.ndarray]]:
    refusals, values = set(), {}
    for name, info in checkpoint.tensors.items():
        if info.spec is None:
            continue
        try:
            tensor = checkpoint.read(name)
        except OctavoError as error:
            one_line(error)
            refusals.add(name)
            continue
        if tuple(tensor.shape) != tuple(info.shape):
            raise JudgedError(f"{name} is said to be {info.shape} and reads as {tensor.shape}")
        with np.errstate(all="ignore"):
            values[name] = tensor.codes if tensor.scales is not None and len(tensor.shape) > 2 else tensor.dequantize()  # stacks of codes have no meaning yet
    return refusals, values


def judge_folder(seed: Sound, checkpoint: Checkpoint, values: dict[str, np.ndarray], refusals: set[str], same_config: bool) -> None:
    now = held(seed.folder)
    used = {part for info in checkpoint.tensors.values() for part in (info.parts or (info.name,))}
    notes = " ".join(checkpoint.notes)
    known = ("k_scale", "v_scale", "q_scale", "_scale_ub")  # of the cache, of inputs
    silent = [name for name in now if name not in used and not name.endswith(known) and name not in notes]
    if silent and checkpoint.codec != "octavo" and "ignored" not in notes:
        raise JudgedError(f"loads without a word about {silent[:3]}")
    whole = same_config and now.keys() == seed.stored.keys()
    for name, parts in seed.parts.items():
        untouched = all(now.get(part) == seed.stored[part] for part in parts)
        if whole and untouched:
            if name in refusals:
                raise JudgedError(f"{name} was not touched and is refused")
            if name in seed.values and (name not in values or not np.array_equal(values[name], seed.values[name])):
                raise JudgedError(f"{name} was not touched and has other numbers" if name in values else f"{name} was not touched and is gone")
        if checkpoint.config.get("model_type") == "llama" and name in values and checkpoint.codec != "octavo" and json.loads(
                seed.files["config.json"]).get("hidden_size") == checkpoint.config.get("hidden_size") and name.endswith("_proj.weight") and \
                values[name].shape != seed.values[name].shape and same_config:
            raise JudgedError(f"{name} has shape {values[name].shape}, the config asks for {seed.values[name].shape}")


def judge_file(seed: Sound, checkpoint: Checkpoint, values: dict[str, np.ndarray]) -> None:
    (before,) = seed.files.values()
    after = model_path(seed.folder).read_bytes()
    if after[: seed.head] == before[: seed.head] and len(after) == len(before):
        if checkpoint.tensors.keys() != seed.values.keys():
            raise JudgedError(f"holds {len(checkpoint.tensors)} tensors instead of {len(seed.values)}")
        places = checkpoint._places  # type: ignore[attr-defined]
        for name, info in checkpoint.tensors.items():
            start = places[name][1]
            if after[start : start + info.nbytes] == before[start : start + info.nbytes] and not np.array_equal(values.get(name), seed.values[name]):
                raise JudgedError(f"{name} was not touched and has other numbers")


def alarm(signum: int, frame: Any) -> None:
    raise TooSlowError


def fuzz(codec: str, count: int, first: int = 0, until: float = float("inf")) -> Counter[str]:
    """`count` mutations of a codec's seeds in turn, those numbered from `first` on; stops at the time `until`. Raises JudgedError, naming the number."""
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        seeds = [sound(codec, name, Path(place) / str(number)) for number, name in enumerate(SEEDS[codec])]
        signal.signal(signal.SIGALRM, alarm)
        try:
            for number in range(first, first + count):
                if time.monotonic() > until:
                    break
                results[one(seeds[number % len(seeds)], codec, number)] += 1
        finally:
            tracemalloc.stop()
    return results


def one(seed: Sound, codec: str, number: int) -> str:
    name, kind = mutate(seed, random.Random(f"{codec} {number}"))
    size = sum(len(data) for data in seed.files.values())
    watched = number % WATCHED == 0
    if watched:
        tracemalloc.start()
    signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
    try:
        result = judge(seed, name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise JudgedError(f"{codec}, mutation {number} ({kind} of {name}): {type(error).__name__}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    peak = tracemalloc.get_traced_memory()[1] if watched else 0
    tracemalloc.stop()
    if peak > 40 * size + (4 << 20):  # all tensors as float32 are 8 to 16 times 4-bit files, and are held here to be compared
        raise JudgedError(f"{codec}, mutation {number} ({kind} of {name}): {peak} bytes for files of {size}")
    (seed.folder / name).write_bytes(seed.files[name])
    return f"{result} {kind}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--codec")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    if options.codec:
        resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
        results = fuzz(options.codec, options.files, options.first, time.monotonic() + 60 * options.minutes)
        print(f"{options.codec}: {sum(results.values())} files: " + ", ".join(f"{count} {what}" for what, count in sorted(results.items())), flush=True)
        return 0
    known, failed = sorted(SEEDS), []
    for codec in known:
        each = -(-options.files // len(known))
        command = [sys.executable, "-m", "fuzzing.run", "--codec", codec, "--files", str(each), "--first", str(options.first),
                   "--minutes", str(options.minutes / len(known))]
        if subprocess.run(command, timeout=60 * options.minutes / len(known) + 120, check=False).returncode:
            failed.append(codec)
    print(f"{len(known)} codecs, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
