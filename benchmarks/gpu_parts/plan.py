"""The parts: their cases in order, who runs them, and how long. Needs neither torch nor Octavo."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import check_cases, shapes
from .machine import ROOT

PARTS = ("check", "peers", "model", "quality", "ways")
USUAL = PARTS[:-1]
SHARES = {"check": 0.28, "warm": 0.12, "peers": 0.28, "model": 0.24, "quality": 0.08, "ways": 0.28}  # of the budget; what a part leaves, the next ones have
SCHEMES = ("16bit", "8bit", "4bit")
EXTRA = "W4A16"   # once all else is measured: what 4bit would be with 16-bit inputs
BATCHES = (1, 16, 128)
QUALITY = ("16bit", "W8A8", "W4A16", "Wfp8Afp8")
MODELS = (".models", "shared/data/models/stories260k-hf", "../shared/data/models/stories260k-hf")
ROUNDS = 4


@dataclass(frozen=True)
class Options:
    """What the command line says, for those who make cases. layers: of the large model, 0: all; parts: that will run."""

    tiny: bool = False
    model: str = ""
    text: str = "receipt"
    layers: int = 0
    parts: tuple[str, ...] = USUAL


def cases(part: str, options: Options) -> list[dict[str, Any]]:
    """The cases of a part, or of "warm": what compiles kernels for the timed parts, in many workers at once."""
    if part == "check":
        return check_cases.cases(options.tiny)
    if part == "peers":
        return shapes.cases(options.tiny)
    if part == "warm":
        model = [case | {"warm": True, "layers": 1, "batches": [1, 2] if options.tiny else list(BATCHES)} for case in _model(options) if case["what"] == "load"]
        compiled = {"peers": shapes.cases(options.tiny, warm=True), "model": model, "ways": shapes.ways(options.tiny, warm=True)}
        return [case for name, some in compiled.items() if name in options.parts for case in some]
    if part == "ways":
        return shapes.ways(options.tiny)
    return _model(options) if part == "model" else _quality(options)


def _model(options: Options) -> list[dict[str, Any]]:
    """The loads, then what the bars ask for, then the rest."""
    batches = (1, 2) if options.tiny else BATCHES
    base = {"module": "model", "tiny": options.tiny, "layers": options.layers, "warm": False, "rounds": 1 if options.tiny else ROUNDS}

    def load(scheme: str) -> dict[str, Any]:
        return base | {"id": f"load {scheme}", "what": "load", "scheme": scheme}

    def decode(batch: int, schemes: tuple[str, ...], name: str = "") -> dict[str, Any]:
        return base | {"id": f"decode {batch}{name}", "what": "decode", "batch": batch, "schemes": list(schemes)}

    def overhead(batch: int, scheme: str) -> dict[str, Any]:
        return base | {"id": f"overhead {batch}, {scheme}", "what": "overhead", "batch": batch, "scheme": scheme}

    schemes = ("16bit", "W8A8") if options.tiny else SCHEMES
    found = [load(scheme) for scheme in schemes] + [decode(1, schemes)] + [overhead(1, scheme) for scheme in schemes]
    found += [decode(batch, schemes) for batch in batches[1:]]
    if not options.tiny:
        found += [overhead(batches[-1], schemes[-1]), load(EXTRA), *(decode(batch, (schemes[0], EXTRA), f" {EXTRA}") for batch in batches)]
    return found


def _quality(options: Options) -> list[dict[str, Any]]:
    model = options.model or find_model(prefer_small=options.tiny)
    if not model:
        return []
    context, windows = (32, 1) if options.tiny else (256, 16)
    return [{"id": f"quality {scheme}", "module": "quality", "scheme": scheme, "model": model, "text": options.text,
             "context": min(context, _longest(model)), "windows": windows} for scheme in (QUALITY[:1] if options.tiny else QUALITY)]


def find_model(prefer_small: bool = False) -> str:
    """A real small model beside this source: the demo model, else stories260k; "" where there is none."""
    found = []
    for name in MODELS:
        place = ROOT / name
        if (place / "config.json").is_file():
            found.append(str(place.resolve()))
        elif place.is_dir():
            found += [str(file) for file in sorted(place.rglob("*.gguf"))]
    return (found[-1] if prefer_small else found[0]) if found else ""


def _longest(model: str) -> int:
    """Positions that a folder's config allows; 256 of other sources is always right."""
    config = Path(model) / "config.json"
    return int(json.loads(config.read_text()).get("max_position_embeddings", 256)) if config.is_file() else 256


def deadlines(parts: tuple[str, ...], budget: float) -> dict[str, float]:
    """Seconds from the start at which each part ends, "warm" before the first that is timed."""
    order: list[str] = []
    for part in PARTS:
        if part in parts:
            order += ["warm", part] if part in ("peers", "model", "ways") and "warm" not in order else [part]
    total, now, found = sum(SHARES[part] for part in order), 0.0, {}
    for part in order:
        now += SHARES[part] / total * budget
        found[part] = now
    return found


def workers(part: str) -> int:
    """Processes that a part runs in: kernels are compiled and checked in many at once, times are taken in one."""
    return max(1, min(14, (os.cpu_count() or 2) - 2)) if part in ("check", "warm") else 1
