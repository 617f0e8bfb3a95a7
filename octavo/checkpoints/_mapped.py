"""Files mapped into memory, and what all checkpoints made of such files share."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..qtensor import QTensor
from ..schemes import TensorSpec
from ..settings import read_settings
from ._digest import digest_of_file, digest_of_files
from ._json import shown
from .base import TensorInfo

CHUNK = 1 << 18  # elements looked at together when searching for NaN: the temporary stays in the L2 cache
# Unquantized dtype -> (unsigned integer of its width, mask without the sign, bits of infinity)
_EXPONENTS: dict[str, tuple[type, int, int]] = {
    "fp32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "fp16": (np.uint16, 0x7FFF, 0x7C00),
    "bf16": (np.uint16, 0x7FFF, 0x7F80),
}

# Small floats that have NaN or infinity: the least code, sign aside, that is one.
NAN_CODES = {"fp8e4m3": 0x7F, "fp8e5m2": 0x7C, "mxfp8": 0x7F}


class MappedFile:
    """A read-only file in memory. Nothing is copied; arrays made of it keep it alive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                self.size, self._inode = found.st_size, found.st_ino
                if self.size == 0:
                    raise CheckpointError("is empty", where=str(path), remedy="fetch it again")
                self._map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {getattr(error, 'strerror', None) or error}"
            raise CheckpointError(reason, where=str(path), remedy="fetch the model again") from None

    def header(self, start: int, count: int) -> bytes:
        """A copy of much, read once. Past the mapping where that can be: from there the system would read ahead, in small pages."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError), self.path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_ino == self._inode:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                    found = os.pread(file.fileno(), min(count, max(0, self.size - start)), start)
                    if len(found) == count:
                        return found
        return self.bytes(start, count)

    def bytes(self, start: int, count: int) -> bytes:
        """A copy of a few bytes."""
        return self._map[start : start + count]

    def array(self, dtype: Any, count: int, start: int) -> np.ndarray:
        """`count` numbers from byte `start` on: a read-only view."""
        if count == 0:  # an empty slice may begin at the end of the file, where there is nothing to view
            return np.empty(0, dtype)
        return np.frombuffer(self._map, dtype, count, start)

    def in_large_pages(self) -> None:
        """Ask for pages of 2 MB, which most of the file must be read in at once; does nothing where system or file system have none."""
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def release(self, start: int, count: int) -> None:
        """Let the system drop these pages; reading them again fetches them from the file."""
        if count and hasattr(mmap, "MADV_DONTNEED"):
            first = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, min(self.size, start + count) - first)


class MappedCheckpoint:
    """Base of the codecs' checkpoints: looking tensors up, places in mapped files, content key."""

    codec = ""
    cache: TensorSpec | None = None
    notes: Sequence[str] = ()

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, TensorInfo],
                 places: dict[str, tuple[MappedFile, int]]) -> None:
        self.path, self.config = path, config
        self.tensors: Mapping[str, TensorInfo] = tensors
        self._places = places  # name -> (file, first byte)

    def info(self, name: str) -> TensorInfo:
        """Raises CheckpointError for a tensor that the checkpoint does not hold."""
        found = self.tensors.get(name)
        if found is None:
            raise CheckpointError(f"tensor {shown(name)} is missing", where=str(self.path), remedy="the checkpoint is incomplete, or of another model")
        return found

    def release(self, name: str) -> None:
        """Give the pages of this tensor back to the system after its last read."""
        file, start = self._places[name]
        file.release(start, self.info(name).nbytes)

    def files(self) -> list[np.ndarray]:
        """The bytes of each file, mapped."""
        return [file.array("u1", file.size, 0) for file in {id(file): file for file, _ in self._places.values()}.values()]

    def content_files(self) -> Iterable[Path]:
        """The files whose bytes make this model what it is."""
        return sorted({file.path for file, _ in self._places.values()})

    def digests(self, cache_dir: Path | None = None) -> dict[str, str]:
        """File name -> sha256 (hex) of each of `content_files`."""
        memos = (cache_dir or read_settings().cache_dir) / "digests"
        return {path.name: digest_of_file(path, memos) for path in self.content_files()}

    def content_key(self, cache_dir: Path | None = None) -> str:
        """Hex digest of the contents, whatever the names of the folders above; see _digest.py for what is remembered."""
        return digest_of_files(self.content_files(), cache_dir)

    def checked(self, tensor: QTensor, info: TensorInfo) -> QTensor:
        """The tensor, or CheckpointError where its numbers or scales are not finite."""
        bad = not_finite(tensor.codes, tensor.spec.format) if tensor.scales is None else _bad_parts(tensor)
        if bad:
            raise CheckpointError(f"tensor {shown(info.name)} holds NaN or infinity", where=str(info.file),
                                  remedy="the weights are damaged: fetch them again")
        return tensor


def _bad_parts(tensor: QTensor) -> bool:
    """Whether a scale, an offset, or a code of a small float that has such codes is NaN or infinite."""
    floats = (tensor.scales, tensor.offsets, tensor.outer, tensor.zeros)
    if any(part is not None and not_finite(np.asarray(part, np.float32), "fp32") for part in floats):
        return True
    if tensor.spec.format not in NAN_CODES:
        return False
    least, flat = NAN_CODES[tensor.spec.format], tensor.codes.reshape(-1)
    return any(int((flat[a : a + CHUNK] & np.uint8(0x7F)).max()) >= least for a in range(0, flat.size, CHUNK))


def not_finite(array: np.ndarray, token: str) -> bool:
    """Whether any number is NaN or infinite; looks at the bits, chunk by chunk."""
    unsigned, mask, infinity = _EXPONENTS[token]
    flat: np.ndarray = array.reshape(-1).view(unsigned)
    return any(int((flat[a : a + CHUNK] & unsigned(mask)).max()) >= infinity for a in range(0, flat.size, CHUNK))


def row_range(rows: slice | None, count: int) -> tuple[int, int]:
    """[first, last) of a plain slice of `count` rows."""
    if rows is None:
        return 0, count
    first, last, step = rows.indices(count)
    if step != 1:
        raise ValueError("rows are read in order: the step of the slice must be 1")
    return first, max(first, last)
