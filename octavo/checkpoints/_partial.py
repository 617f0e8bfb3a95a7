"""A checkpoint in the making: files laid out in a hidden folder beside the target, filled in any order, published in one rename.

`.NAME.octavo-partial/` holds `lock` (held by the living writer), `journal` (what is being made, then the tensors that are done and on the disk)
and `out/`, the files themselves. The journal appears only once all files have their full size, so whoever finds one can go on; who finds none begins
anew. Nothing is visible under the target's name before all is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ._safetensors_write import held, nbytes
from ._synced import sync_folder, write_synced
from .base import Layout, Part

SUFFIX = ".octavo-partial"
COMMIT_SECONDS, COMMIT_BYTES = 1.0, 256 << 20  # so much work, at most, is lost with a process
NEAR_BYTES = 1 << 20  # between tensors that are written out together


class Partial:
    """The files of `out`, in the making. Use as a context manager: it holds the lock. Raises CheckpointError where the disk refuses."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out.parent / f".{out.name}{SUFFIX}"
        self.files = self.folder / "out"
        self._maps: dict[str, mmap.mmap] = {}
        self._places: dict[str, tuple[mmap.mmap, int, Part]] = {}
        self._pending: list[tuple[str, Sequence[str]]] = []
        self._pending_bytes, self._committed = 0, time.monotonic()

    def __enter__(self) -> Partial:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise CheckpointError("is being written by another process", where=str(self.out), remedy="wait for it, or choose another folder") from None
        except OSError as error:
            raise self.refused(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._lock.close()

    def header(self) -> dict[str, Any] | None:
        """What the journal says is being made, or None where nothing was begun."""
        try:
            with (self.folder / "journal").open(encoding="utf-8") as file:
                found = json.loads(file.readline())
            return found if isinstance(found, dict) else None
        except (OSError, ValueError):
            return None

    def begin(self, header: dict[str, Any], layouts: Sequence[Layout]) -> set[str]:
        """Lay the files out, or go on with those that were laid out under an equal header. Returns the tensors that are done."""
        done = self._resume(header, layouts)
        if done is None:
            done = set()
            try:
                self._lay_out(header, layouts)
            except OSError as error:
                self.discard()
                raise self.refused(error, sum(layout.size for layout in layouts)) from None
        for layout in layouts:
            with (self.files / layout.name).open("r+b") as file:
                mapped = self._maps[layout.name] = mmap.mmap(file.fileno(), layout.size)
            self._places |= {name: (mapped, start, part) for name, (start, part) in layout.places.items()}
        self._journal = (self.folder / "journal").open("a", encoding="utf-8")
        return done

    def arrays(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """The parts of these names, mapped and writable."""
        found = {}
        for name in names:
            mapped, start, part = self._places[name]
            dtype, shape = held(part)
            count = int(np.prod(shape, dtype=np.int64))
            found[name] = (np.frombuffer(mapped, dtype, count, start) if count else np.empty(0, dtype)).reshape(shape)
        return found

    def release(self, names: Iterable[str]) -> None:
        """Let the system write these parts' pages out and reuse the memory; the numbers stay in the file."""
        for name in names:
            mapped, start, part = self._places[name]
            first, size = _pages(start, nbytes(part))
            if size and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED, first, min(size, len(mapped) - first))

    def finished(self, tensor: str, parts: Sequence[str]) -> None:
        """The tensor's parts are filled. It enters the journal with the next commit, which is not far."""
        self._pending.append((tensor, parts))
        self._pending_bytes += sum(nbytes(self._places[name][2]) for name in parts)
        if self._pending_bytes >= COMMIT_BYTES or time.monotonic() - self._committed >= COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Wait until what is filled is on the disk, then say so in the journal."""
        if not self._pending:
            return
        try:
            for mapped, first, last in self._filled():
                mapped.flush(first, last - first)
            self._journal.write(json.dumps([tensor for tensor, _ in self._pending]) + "\n")
            self._journal.flush()
            os.fsync(self._journal.fileno())
        except OSError as error:
            raise self.refused(error) from None
        self._pending, self._pending_bytes, self._committed = [], 0, time.monotonic()

    def _filled(self) -> Iterator[tuple[mmap.mmap, int, int]]:
        """The runs of bytes that hold what is pending: one wait for the disk for many small tensors that lie near each other."""
        ranges = []
        for _, parts in self._pending:
            for name in parts:
                mapped, start, part = self._places[name]
                first, size = _pages(start, nbytes(part))
                if size:
                    ranges.append((id(mapped), first, min(first + size, len(mapped)), mapped))
        run: tuple[mmap.mmap, int, int] | None = None
        for _, first, last, mapped in sorted(ranges, key=lambda found: found[:3]):
            if run is not None and run[0] is mapped and first <= run[2] + NEAR_BYTES:
                run = mapped, run[1], max(run[2], last)
                continue
            if run is not None:
                yield run
            run = mapped, first, last
        if run is not None:
            yield run

    def write(self, name: str, content: bytes) -> None:
        """A small file among the others."""
        try:
            path = self.files / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(path, content)
        except OSError as error:
            raise self.refused(error) from None

    def publish(self, made: Path, *, overwrite: bool) -> None:
        """Give `made` (the folder of files, or one of them) the target's name, and remove the rest."""
        self.commit()
        self._close()
        try:
            sync_folder(self.files)
            if self.out.exists() or self.out.is_symlink():
                if not overwrite:
                    raise CheckpointError("has appeared meanwhile", where=str(self.out), remedy="remove it, or give --overwrite")
                old = self.folder / "old"
                _remove(old)
                os.rename(self.out, old)
            os.rename(made, self.out)
            sync_folder(self.out.parent)
        except OSError as error:
            raise self.refused(error) from None
        self.discard()

    def discard(self) -> None:
        """Remove everything that has not got its name."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def refused(self, error: OSError, needed: int = 0) -> CheckpointError:
        size = f" ({needed / 1e9:.2f} GB are needed)" if needed else ""
        return CheckpointError(f"cannot be written: {error.strerror or error}{size}", where=str(self.out), remedy="free space, or choose another place")

    def _resume(self, header: dict[str, Any], layouts: Sequence[Layout]) -> set[str] | None:
        if self.header() != header:
            return None
        try:
            for layout in layouts:
                with (self.files / layout.name).open("rb") as file:
                    if os.fstat(file.fileno()).st_size != layout.size or file.read(len(layout.head)) != layout.head:
                        return None
            with (self.folder / "journal").open("r+b") as journal:
                lines = journal.readlines()
                if not lines[-1].endswith(b"\n"):  # the last word of a process that died
                    journal.truncate(sum(map(len, lines[:-1])))
                    lines.pop()
            return {name for line in lines[1:] for name in json.loads(line)}
        except (OSError, ValueError, TypeError):
            return None

    def _lay_out(self, header: dict[str, Any], layouts: Sequence[Layout]) -> None:
        for entry in self.folder.iterdir():
            if entry.name != "lock":
                _remove(entry)
        self.files.mkdir()
        for layout in layouts:
            with (self.files / layout.name).open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # a full disk says so here, not as a signal to whoever writes to the mapping
                    os.posix_fallocate(file.fileno(), 0, layout.size)
                else:
                    file.truncate(layout.size)
                file.write(layout.head)
                file.flush()
                os.fsync(file.fileno())
        journal = self.folder / "journal"
        write_synced(self.folder / "journal-new", json.dumps(header).encode() + b"\n")
        os.rename(self.folder / "journal-new", journal)
        sync_folder(self.folder)

    def _close(self) -> None:
        self._places.clear()
        for mapped in self._maps.values():
            with contextlib.suppress(BufferError):  # an array that somebody still holds keeps its mapping until it goes
                mapped.close()
        self._maps.clear()
        if (journal := getattr(self, "_journal", None)) is not None:
            journal.close()


def _pages(start: int, size: int) -> tuple[int, int]:
    """(first byte, bytes) of the whole pages around a range."""
    first = start - start % mmap.PAGESIZE
    return first, (start + size - first) if size else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
