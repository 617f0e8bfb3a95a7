"""Programs over rows alone: no tokens, no cache, no logits. What encoders are made of, recorded and replayed like a decoder's step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _native
from .native import Constant, NativeOps, NativeWeight, Recorded, _Recording

ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2, "relu": 3, "tanh": 4, "sigmoid": 5}
IDS = {"tokens": 0, "positions": 1, "types": 2}


class RowsProgram:
    """A recorded function of rows [rows, width in] -> [rows, width out]. One run at a time."""

    def __init__(self, native: Any, keep: list[Any], source: Recorded, result: Recorded) -> None:
        self._native, self._keep, self._source, self._result = native, keep, source, result

    def run(self, x: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """float32 [rows, width out] from x float32 [rows, width in]; sequence s has the rows starts[s] .. starts[s + 1] - 1 (int32). ValueError for
        arrays that do not fit."""
        out = np.empty((len(x), self._result.width), np.float32)
        if len(x):
            self._native.apply(x, starts, self._source.id, self._result.id, out)
        return out

    def describe(self, rows: int) -> list[dict[str, Any]]:
        """Every op with what it reads and computes for that many rows (csrc/trace.h OpInfo)."""
        return list(self._native.describe(rows, 0))


class IdsProgram:
    """A recorded function of token ids -> rows [batch * length, width], and one row for each sequence where it was recorded so. One run at a time."""

    def __init__(self, native: Any, keep: list[Any], result: Recorded, chosen: Recorded | None) -> None:
        self._native, self._keep, self._result, self._chosen = native, keep, result, chosen
        self.width, self.chosen_width = result.width, None if chosen is None else chosen.width

    def run(self, ids: np.ndarray, mask: np.ndarray | None, types: np.ndarray | None, padding: int, out: np.ndarray,
            first: np.ndarray | None) -> bool:
        """Fills `out` float32 [batch * length, width]: rows that `mask` leaves out become 0. `first` float32 [batch, chosen width]: what was
        recorded of the first tokens, filled unless some sequence begins with padding; whether it was.

        ids, types int64 [batch, length]; mask bool or int64 of the same shape, None: all count; padding: id without a position, -1 for none
        (csrc/bind_rows.inl.h). IndexError for ids that no table has, ValueError for arrays that do not fit.
        """
        return bool(self._native.encode(ids, mask, types, padding, self._result.id, out, -1 if self._chosen is None else self._chosen.id, first))

    def describe(self, rows: int, sequences: int) -> list[dict[str, Any]]:
        """As RowsProgram."""
        return list(self._native.describe(rows, sequences))


class RowsOps(NativeOps):
    """The native ops, and those that encoders need. threads, isa: as NativeOps; team: threads to share with others."""

    def __init__(self, threads: int | None = None, isa: str | None = None, team: Any = None) -> None:
        super().__init__(threads if team is None else None, isa)
        if team is not None:
            self.team, self.threads = team, team.size

    def capture_rows(self, width: int, describe: Callable[[RowsOps, Recorded], Recorded]) -> RowsProgram:
        """Records what `describe` does with rows of `width` floats. Ops that want tokens or a cache are refused at the first run."""
        recording = self._recording = _Recording(_native.Program(self.team, self.isa))
        try:
            source = Recorded(recording, width, False)
            result = describe(self, source)
            return RowsProgram(recording.program, recording.keep, source, result)
        finally:
            self._recording = None

    def capture_ids(self, describe: Callable[[RowsOps], tuple[Recorded, Recorded | None]]) -> IdsProgram:
        """Records what `describe` does with the ids of a step (look_up); it returns the result and, or None, something of the rows that `select` took."""
        recording = self._recording = _Recording(_native.Program(self.team, self.isa))
        try:
            result, chosen = describe(self)
            return IdsProgram(recording.program, recording.keep, result, chosen)
        finally:
            self._recording = None

    def look_up(self, weight: NativeWeight, ids: str) -> Recorded:
        """The rows of a table that ids choose, those of IDS."""
        now = self._now
        out = Recorded(now, weight.k, False)
        now.program.embed_by(now.weight(weight), IDS[ids], out.id)
        return out

    def layer_norm(self, x: Recorded, gain: Constant, bias: Constant | None, eps: float) -> Recorded:
        """(x - mean) / sqrt(variance + eps) * gain + bias of each row."""
        now = self._now
        out = Recorded(now, x.width, x.logits)
        now.program.layer_norm(x.id, now.constant(gain), -1 if bias is None else now.constant(bias), eps, out.id)
        return out

    def activate(self, kind: str, x: Recorded) -> Recorded:
        """One of ACTIVATIONS of every value."""
        now = self._now
        out = Recorded(now, x.width, x.logits)
        now.program.activate(ACTIVATIONS[kind], x.id, out.id)
        return out

    def mutual_attention(self, q: Recorded, k: Recorded, v: Recorded, *, heads: int, head_dim: int, scale: float) -> Recorded:
        """softmax(q k^T scale) v in each head of each sequence, every row seeing all rows of its sequence."""
        now = self._now
        out = Recorded(now, q.width, False)
        now.program.mutual_attention(q.id, k.id, v.id, out.id, heads, head_dim, scale)
        return out


__all__ = ["ACTIVATIONS", "IDS", "IdsProgram", "NativeWeight", "RowsOps", "RowsProgram"]
