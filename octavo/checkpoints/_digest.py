"""The digest of a model's bytes, remembered so that a second start does not read them all again.

A digest is remembered under (real path, size, time of change, inode) in `<cache>/digests`; a memo that cannot be read is as good as none.
As git does with its index, a file changed within the last two seconds is not remembered: it could change again within the clock's tick.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from ..errors import CheckpointError
from ..settings import read_settings

CHUNK = 4 << 20
SETTLED_SECONDS = 2.0


def digest_of_files(paths: Iterable[Path], cache_dir: Path | None = None) -> str:
    """sha256 (hex) over (file name, digest of the contents) of each file, in the given order."""
    memos = (cache_dir or read_settings().cache_dir) / "digests"
    whole = hashlib.sha256()
    for path in paths:
        whole.update(json.dumps([path.name, digest_of_file(path, memos)]).encode())
    return whole.hexdigest()


def digest_of_file(path: Path, memos: Path) -> str:
    """sha256 (hex) of one file's bytes."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
        identity = [real, status.st_size, status.st_mtime_ns, status.st_ino]
        memo = memos / (hashlib.sha256(real.encode(errors="surrogateescape")).hexdigest()[:32] + ".json")
        if (known := _recall(memo, identity)) is not None:
            return known
        digest = hashlib.sha256()
        with open(real, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(CHUNK))
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if time.time() - status.st_mtime > SETTLED_SECONDS:
        _remember(memo, {"identity": identity, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def _recall(memo: Path, identity: list[object]) -> str | None:
    try:
        known = json.loads(memo.read_bytes())
        digest = known["sha256"]
        return digest if known["identity"] == identity and isinstance(digest, str) and len(bytes.fromhex(digest)) == 32 else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _remember(memo: Path, record: dict[str, object]) -> None:
    """Best effort: a cache that cannot be written only costs time."""
    import tempfile

    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memo.parent, prefix=".memo-", delete=False) as file:
            json.dump(record, file)
        os.replace(file.name, memo)
    except OSError:
        return
