"""What a server tells of itself: precision, bytes of weights, memory, what quantizing lost. Any of it may be missing; only Octavo tells all."""

from __future__ import annotations

import contextlib
from typing import Any

from ..errors import OctavoError
from .target import Target


def server_facts(target: Target) -> dict[str, Any]:
    """Keys that are there only where the server told: precision, weight_bytes, memory {"rss"}, quality (as /v1/quality has it), version."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OctavoError, TypeError, KeyError, AttributeError):
        models = target.get_json("/v1/models")["data"]
        named: dict[str, Any] = next((m for m in models if m.get("id") == target.model), {})
        if named.get("quantization"):
            found["precision"] = str(named["quantization"])
    with contextlib.suppress(OctavoError, TypeError, KeyError, AttributeError):
        found["version"] = str(target.get_json("/version")["version"])
    with contextlib.suppress(OctavoError, TypeError, AttributeError):
        quality = target.get_json("/v1/quality")
        if isinstance(quality, dict) and quality:
            found["quality"] = quality
    with contextlib.suppress(OctavoError, ValueError):
        values = samples(target.get("/metrics").decode(errors="replace"))
        weights = sum(value for name, value in values if name.partition("{")[0] == "octavo_weight_bytes")
        if weights:
            found["weight_bytes"] = int(weights)
        memory = next((value for name, value in values if name == "process_resident_memory_bytes"), None)
        if memory:
            found["memory"] = {"rss": int(memory)}
    return found


def samples(text: str) -> list[tuple[str, float]]:
    """(name with its labels, value) of a page of Prometheus' text format. Raises ValueError."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ") if line.count("}") else line.partition(" ")
            found.append((name, float(value.split()[0])))
    return found
