"""Where policies lie: one readable JSON file per model and scheme in a folder of the user's choice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ._policy import Policy

LONGEST_NAME = 80
LARGEST_FILE = 16 << 20


def policy_path(folder: Path, model: str, scheme: str) -> Path:
    """The file of a model in a precision. Whether it fits model and machine stands inside, so that one that does not is found and named."""
    text = f"{model}.{scheme}"
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:LONGEST_NAME]
    return folder / f"{plain}.{hashlib.sha256(text.encode()).hexdigest()[:8]}.policy.json"


def find(path: Path, now: Mapping[str, Any]) -> tuple[Policy | None, str]:
    """The policy in `path` if it was measured under the fingerprint `now`, else None and the reason why there is none to use."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            return None, f"{path}: is larger than {LARGEST_FILE >> 20} MiB, which no policy is"
        data = json.loads(path.read_text(encoding="utf-8"))
        policy = Policy.from_json(data if isinstance(data, dict) else {}, str(path))
    except FileNotFoundError:
        return None, f"there is no policy {path}"
    except (OSError, ValueError, RecursionError) as error:
        return None, f"{path}: cannot be read: {str(error)[:120]}"
    except UsageError as error:
        return None, str(error)
    reason = policy.stale(now)
    return (policy, "") if reason is None else (None, f"{path} is stale: {reason}")


def save(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the new one, never a part. Raises UsageError where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), remedy="name a folder that you may write to") from None
