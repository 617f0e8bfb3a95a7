"""What the cache's formats do to a head of a key or a value: the truth in NumPy that csrc/lanes/cache_write.inl.h is tested against."""

from __future__ import annotations

import numpy as np

from .. import formats
from ..cache import Layer, lead, rotation
from ..qtensor import quantize
from ..schemes import TensorSpec

RANGES = (1.0, 0.92, 0.84, 0.76)  # parts of the range that a 4-bit code may cover; the one with the least squared error is taken
LOST = 0x7FC07FC0                 # scale and offset of a head with NaN or infinity: bfloat16 NaN


def rotate(x: np.ndarray) -> np.ndarray:
    """x [..., dim] in blocks of the largest power of two that divides dim; its own inverse."""
    dim = x.shape[-1]
    block = dim & -dim
    turned: np.ndarray = (x.reshape(*x.shape[:-1], dim // block, block) @ rotation(block)).reshape(x.shape)
    return turned


def turn_keys(k: np.ndarray, layer: Layer) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys [rows, heads, dim] as they are stored; of int4 also whether the jump was taken away [rows, heads] (cache.arranged)."""
    if layer.balance is None:
        return k, None
    if layer.turned:
        return rotate((k - layer.balance[0]) * layer.balance[1]), None
    mean, inverse, _, jump, order = layer.balance
    k = np.take_along_axis(k - mean, order[None].astype(np.int64), axis=2) * inverse
    count = lead(layer.dim)
    k = np.concatenate([k[..., :count], k[..., count:] @ rotation(layer.dim - count)], axis=-1)
    near = (((k - jump) ** 2).sum(axis=-1) < (k**2).sum(axis=-1)) & (not layer.keys.symmetric)
    return np.where(near[..., None], k - jump, k), near


def turn_back(k: np.ndarray, layer: Layer, near: np.ndarray | None) -> np.ndarray:
    """Keys [heads, length, dim] from what is stored; `near` [heads, length] of int4."""
    if layer.balance is None:
        return k
    balance = layer.balance.astype(np.float64)[:, :, None]
    if near is None:
        return rotate(k) / balance[1] + balance[0]
    k = k + near[..., None] * balance[3]
    count = lead(layer.dim)
    k = np.concatenate([k[..., :count], k[..., count:] @ rotation(layer.dim - count).T], axis=-1) / balance[1]
    place = np.argsort(layer.balance[4], axis=1)[:, None]
    return np.take_along_axis(k, place, axis=2) + balance[0]


def encode(x: np.ndarray, spec: TensorSpec, fixed: np.ndarray | None, leading: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
    """(codes like x, scales without the last axis) of heads x [..., dim] float32; int4: codes 0..15, of the first `leading` 0..255, and words. fixed: the
    static scale."""
    if not spec.quantized:
        return formats.get(spec.format).encode(x), None
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    safe = np.where(finite, x, np.float32(0))
    if fixed is not None:
        return formats.get(spec.format).encode((x * (np.float32(1) / fixed[0])).astype(np.float32)), None
    if spec.format == "int4":
        codes, words = _fit(safe.reshape(-1, x.shape[-1]), spec.symmetric, leading)
        return codes.reshape(x.shape), np.where(finite[..., 0], words.reshape(x.shape[:-1]), np.uint32(LOST))
    found = quantize(safe.reshape(-1, x.shape[-1]), TensorSpec(spec.format, "token", dynamic=True))
    scales = np.asarray(found.scales).reshape(x.shape[:-1])
    return found.codes.reshape(x.shape), np.where(finite[..., 0], scales, np.float32(np.nan))


def decode(codes: np.ndarray, scales: np.ndarray | None, spec: TensorSpec, leading: int = 0) -> np.ndarray:
    """float64 heads [..., dim] from `encode`'s codes and scales (static: one number)."""
    if spec.format == "int4" and scales is not None:
        scale, offset = ((half.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for half in (scales >> 16, scales & 0xFFFF))
        parts = np.where(np.arange(codes.shape[-1]) < leading, 1 / 16, 1.0)
        return codes * parts * (scale if spec.symmetric else abs(scale))[..., None] + offset[..., None]
    values: np.ndarray = formats.get(spec.format).decode(codes).astype(np.float64)
    return values if scales is None else values * (scales if scales.ndim == 0 else scales[..., None])


def pack_keys(codes: np.ndarray, leading: int = 0) -> np.ndarray:
    """Codes [..., dim] -> bytes: one for each leading code, then dimension 2i of the 4-bit codes in the low bits, 2i + 1 in the high bits."""
    even = _even(codes[..., leading:])
    packed: np.ndarray = np.concatenate([codes[..., :leading], even[..., 0::2] | even[..., 1::2] << 4], axis=-1)
    return packed


def unpack_keys(packed: np.ndarray, dim: int, leading: int = 0) -> np.ndarray:
    rest = packed[..., leading:]
    return np.concatenate([packed[..., :leading], np.stack([rest & 15, rest >> 4], axis=-1).reshape(*rest.shape[:-1], -1)], axis=-1)[..., :dim]


def pack_values(codes: np.ndarray) -> np.ndarray:
    """4-bit codes [..., dim] -> bytes [..., ceil(dim / 2)]: of a run of 32 dimensions, i low and i + 16 high; of a last run of n, i and i + ceil(n / 2)."""
    dim = codes.shape[-1]
    parts = []
    for start in range(0, dim, 32):
        run = _even(codes[..., start : start + 32])
        half = run.shape[-1] // 2
        parts.append(run[..., :half] | run[..., half:] << 4)
    return np.concatenate(parts, axis=-1)


def unpack_values(packed: np.ndarray, dim: int) -> np.ndarray:
    parts = []
    for start in range(0, dim, 32):
        width = min(32, dim - start)
        part = packed[..., start // 2 : start // 2 + (width + 1) // 2]
        parts.append(np.concatenate([part & 15, part >> 4], axis=-1)[..., :width])
    return np.concatenate(parts, axis=-1)


def _even(codes: np.ndarray) -> np.ndarray:
    return codes if codes.shape[-1] % 2 == 0 else np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)


def _bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to bfloat16, as float32."""
    number = formats.get("bf16")
    return np.asarray(number.decode(number.encode(x.astype(np.float32))), np.float32)


def _fit(x: np.ndarray, symmetric: bool, leading: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8 [rows, dim], words uint32 [rows]) of finite x [rows, dim] float32. The first `leading` have 8 bits and are not cut off."""
    half = np.float32(0.5)
    first, rest = x[:, :leading], x[:, leading:]
    low, high = rest.min(axis=-1, keepdims=True), rest.max(axis=-1, keepdims=True)
    least, most = first.min(axis=-1, keepdims=True, initial=np.inf), first.max(axis=-1, keepdims=True, initial=-np.inf)
    middle, reach = half * low + half * high, half * high - half * low
    best = np.full((len(x), 1), np.inf)
    codes, words = np.zeros(rest.shape, np.uint8), np.zeros((len(x), 1), np.uint32)
    for part in RANGES:
        ratio = np.float32(part)
        start = np.minimum(low * ratio if symmetric else middle - reach * ratio, least)
        end = np.maximum(high * ratio if symmetric else middle + reach * ratio, most)
        scale = _bf16(np.where(end > -start, end, start) / np.float32(-8) if symmetric else half * end / np.float32(7.5) - half * start / np.float32(7.5))
        offset = _bf16(np.float32(-8) * scale if symmetric else start)
        inverse = np.where(scale != 0, np.float32(1) / np.where(scale != 0, scale, np.float32(1)), np.float32(0))
        now = np.clip(np.rint((rest - offset) * inverse), 0, 15).astype(np.uint8)
        error = ((now * scale + offset - rest).astype(np.float64) ** 2).sum(axis=-1, keepdims=True)
        word = (scale.view(np.uint32) & np.uint32(0xFFFF0000)) | (offset.view(np.uint32) >> 16)
        better = (error < best) | (part == RANGES[0])
        best, codes, words = np.where(better, error, best), np.where(better, now, codes), np.where(better, word, words)
    scale, offset = (words & np.uint32(0xFFFF0000)).view(np.float32), (words << np.uint32(16)).view(np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # so that codes are no smaller than x, see csrc/lanes/cache_write.inl.h
        factor = (rest * rest).sum(axis=-1, keepdims=True) / (rest * (codes * scale + offset)).sum(axis=-1, keepdims=True)
    factor = np.where((factor > 0.8) & (factor < 1.25), factor, np.float32(1))
    scale = _bf16(scale * factor)
    offset = _bf16(np.float32(-8) * scale if symmetric else offset * factor)
    inverse = np.where(scale != 0, np.float32(16) / np.where(scale != 0, scale, np.float32(1)), np.float32(0))
    leads = np.clip(np.rint((first - offset) * inverse), 0, 255).astype(np.uint8)
    return np.concatenate([leads, codes], axis=1), ((scale.view(np.uint32) & np.uint32(0xFFFF0000)) | (offset.view(np.uint32) >> 16))[:, 0]
