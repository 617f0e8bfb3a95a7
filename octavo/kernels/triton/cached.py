"""One attention of a model, through the cache: queries and keys rotated by position, what the cache wants turned, keys and values stored, then attended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import attention, rope, store, turn

if TYPE_CHECKING:
    from .pool import GpuLayer
    from .program import Now


def through(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: GpuLayer, now: Now, table: torch.Tensor | None, heads: int, scale: float,
            window: int = 0, softcap: float = 0.0) -> torch.Tensor:
    """[rows, heads * dim] of now.inner. q [rows, heads * dim], k and v [rows, kv_heads * dim]; table: the angles to rotate q and k by, None where that is
    done."""
    dim, kv_heads = layer.dim, layer.heads
    ready = torch.empty(q.shape, dtype=now.inner, device=q.device)
    if table is not None and (layer.turns is not None or layer.value_turn is not None):
        q, k = _rotated(q, table, now.positions, heads, dim), _rotated(k, table, now.positions, kv_heads, dim)
        table = None
    if layer.turns is not None:
        balanced = torch.empty(k.shape, dtype=torch.float32, device=k.device)
        turn.turn(k, balanced, layer.turns.keys, kv_heads, kv_heads, layer.turns.mean)
        turn.turn(q, ready, layer.turns.queries, heads, kv_heads)
        q, k = ready, balanced
    if layer.value_turn is not None:
        spun = torch.empty(v.shape, dtype=torch.float32, device=v.device)
        turn.turn(v, spun, layer.value_turn, kv_heads, kv_heads)
        v = spun
    store.store(q, k, v, ready, table, now.positions, now.slots, layer, heads)
    out = torch.empty_like(ready)
    attention.attend(q if table is None else ready, out, layer, now.who, scale, window, softcap)
    if layer.value_turn is None:
        return out
    back = torch.empty_like(out)
    turn.turn(out, back, layer.value_turn, heads, kv_heads)
    return back


def _rotated(x: torch.Tensor, table: torch.Tensor, positions: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
    """float32."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    rope.rope(x, out, table, positions, heads, dim, table.shape[1])
    return out
