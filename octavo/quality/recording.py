"""Recording: the logits of an original on a file, for where it does not fit into memory beside the model it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import CapacityError, UsageError
from .perplexity import CHUNK, Model, Windows, logits_of


class Recording:
    """Logits [scored tokens, vocab] in a file that is mapped, so that no more of it is in memory than is being read."""

    def __init__(self, path: Path, windows: Windows, logits: np.ndarray) -> None:
        self.path, self.windows, self.logits = path, windows, logits

    def replay(self, windows: Windows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(logits float32, targets) as `logits_of` gave them. Raises UsageError for windows that were not recorded."""
        if not (np.array_equal(windows.tokens, self.windows.tokens) and np.array_equal(windows.scored, self.windows.scored)):
            raise UsageError("these are logits of another text", where=str(self.path))
        context, row = windows.tokens.shape[1], 0
        for tokens, scored in zip(windows.tokens, windows.scored.tolist(), strict=True):
            for start in range(0, context - 1, CHUNK):
                first, stop = max(start, context - scored - 1), min(start + CHUNK, context - 1)
                if first < stop:
                    yield self.logits[row : row + stop - first].astype(np.float32), tokens[first + 1 : stop + 1]
                    row += stop - first


def recorded_bytes(model_vocabulary: int, windows: Windows, dtype: Literal["float16", "float32"] = "float32") -> int:
    """Bytes that `record` writes."""
    return windows.targets * model_vocabulary * np.dtype(dtype).itemsize


def record(original: Model, windows: Windows, path: Path, *, dtype: Literal["float16", "float32"] = "float32",
           on_rows: Callable[[int, int], None] | None = None) -> Recording:
    """Write the original's logits to `path`. Raises CapacityError where the disk has no room.

    float32 keeps them exactly. float16 halves the file; rows are shifted to a maximum of 0 first, and what that costs is a KL of some
    1e-6 nats.
    """
    logits: np.memmap | None = None
    row = 0
    try:
        for found, targets in logits_of(original, windows):
            if logits is None:
                logits = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=(windows.targets, found.shape[1]))
            logits[row : row + len(targets)] = found if dtype == "float32" else found - found.max(axis=1, keepdims=True)
            row += len(targets)
            if on_rows is not None:
                on_rows(row, windows.targets)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CapacityError(f"cannot keep the original's logits: {error.strerror}", where=str(path), remedy="use fewer windows") from None
    assert logits is not None, "windows are never empty"
    logits.flush()
    return Recording(path, windows, logits)
