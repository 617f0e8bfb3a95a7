"""panel16: the one packed layout of weights, that every native kernel reads and that the cache stores.

Sixteen output rows to a panel, four K values of each row side by side; csrc/ops.h (struct Packed) draws the bytes. Packing moves codes and
changes none: `unpack(pack(q))` has the codes, scales, zeros, order, factors and rotation of q (zero points and offsets as float zeros). Work goes by panels, so
temporaries stay small.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import formats
from .errors import KernelError
from .formats import pack_bits, unpack_bits
from .formats._trellis import digits_of, state_of
from .qtensor import QTensor
from .schemes import TensorSpec

LAYOUT = "panel16.2"  # changes whenever the bytes do; part of every cache key
PANEL, STEP, ALIGN = 16, 64, 64
FOUR = 4  # columns that lie together: no group ends between them
ROWS_AT_ONCE = 512
STORES = {"f32": 0, "bf16": 1, "codes8": 2, "codes4": 3, "e4m3": 4, "e5m2": 5, "trellis": 6}
TILE = 64  # rows that share the values of a trellis: four panels
FLOATS = ("f32", "bf16")  # stores without scales
SMALL_FLOATS = {"fp8e4m3": "e4m3", "mxfp8": "e4m3", "fp8e5m2": "e5m2"}
NOT_FINITE = {"e4m3": 0x7F, "e5m2": 0x7C}  # the least code, sign apart, that is no finite number
SCALE_TYPES = {"fp32": 0, "fp16": 1, "bf16": 2}


@dataclass(frozen=True)
class PackedMeta:
    """What a blob means. `spec` is the TensorSpec it came from; `table` the 16 values of a table format, empty otherwise."""

    layout: str
    store: str
    scale_type: str
    n: int
    k: int
    kpad: int
    group: int
    groups: int
    has_zeros: bool
    table: tuple[float, ...]
    spec: TensorSpec

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> PackedMeta:
        """The inverse of to_json. Raises KeyError or TypeError for anything else."""
        return PackedMeta(**{**data, "table": tuple(data["table"]), "spec": TensorSpec(**data["spec"])})

    @property
    def unit(self) -> int:
        """Rows that are packed together."""
        return TILE if self.store == "trellis" else PANEL

    @property
    def panels(self) -> int:
        """Panels that are stored; a trellis fills up its last tile."""
        return -(-self.n // self.unit) * (self.unit // PANEL)

    @property
    def zeros_offset(self) -> int:
        return 0 if self.store in FLOATS else self.groups * PANEL * (4 if self.scale_type == "fp32" else 2)

    @property
    def values_offset(self) -> int:
        end = self.zeros_offset + (self.groups * PANEL * 4 if self.has_zeros else 0)
        return -(-end // ALIGN) * ALIGN

    @property
    def panel_bytes(self) -> int:
        """Bytes of one panel: scales, zeros, values, each part as csrc/ops.h says; a multiple of 64 (four of a trellis' panels are)."""
        if self.store == "trellis":
            tile = 8 * self.spec.bits * self.kpad
            return (-(-4 * self.zeros_offset // ALIGN) * ALIGN + tile) // 4
        values = {"f32": 64 * self.k, "bf16": 32 * self.k, "codes4": 8 * self.kpad}.get(self.store, 16 * self.kpad)
        return self.values_offset + -(-values // ALIGN) * ALIGN

    @property
    def nbytes(self) -> int:
        return self.panels * self.panel_bytes


@dataclass(frozen=True)
class Packed:
    """`blob` uint8 [meta.nbytes], 64-byte aligned; perhaps a read-only map of a file. `order`, `factors`, `rotation` as in QTensor: the panels hold the codes'
    columns as they come, and whoever multiplies brings the inputs into that order."""

    blob: np.ndarray
    meta: PackedMeta
    order: np.ndarray | None = None
    factors: np.ndarray | None = None
    rotation: int = 0

    @property
    def nbytes(self) -> int:
        return self.meta.nbytes + sum(4 * self.meta.k for part in (self.order, self.factors) if part is not None)


def why_not(spec: TensorSpec) -> str | None:
    """None when panel16 can hold a weight of this spec, else the reason."""
    number = formats.get(spec.format)
    if not spec.quantized:
        return None
    if number.kind == "trellis":
        return None
    if number.kind == "float" and number.bits > 4 and spec.format not in SMALL_FLOATS:
        return f"panel16 holds integers, 4-bit tables and floats of 8, 16 or 32 bits, not {spec.format}"
    if spec.granularity == "group" and spec.size % FOUR:
        return f"panel16 needs groups that are multiples of {FOUR}, not {spec.size}"
    if spec.granularity == "block" and spec.columns % FOUR:
        return f"panel16 needs blocks whose columns are a multiple of {FOUR}, not {spec.columns}"
    return None


def describe(spec: TensorSpec, n: int, k: int) -> PackedMeta:
    """The layout of a weight [n, k] of this spec, before there are any numbers. Raises KernelError when it has none."""
    if (reason := why_not(spec)) is not None:
        raise KernelError(reason)
    number = formats.get(spec.format)
    if not spec.quantized:
        store = "f32" if spec.format == "fp32" else "bf16"
        if spec.format == "fp16":
            store = "f32"  # float16 has digits that bfloat16 lacks
        return PackedMeta(LAYOUT, store, "fp32", n, k, k, 0, 0, False, (), spec)
    kpad = -(-k // STEP) * STEP
    columns = spec.size if spec.granularity == "group" else spec.columns if spec.granularity == "block" else 0
    group = columns if columns and columns < k else kpad
    table = () if number.kind in ("int", "trellis") or number.bits > 4 else tuple(float(v) for v in number.decode(np.arange(16, dtype=np.uint8)))
    scale_format = {"e8m0": "bf16"}.get(spec.scale_format, spec.scale_format)  # which has every power of two that e8m0 has
    scale_type = scale_format if scale_format in SCALE_TYPES and not number.two_level else "fp32"
    store = "trellis" if number.kind == "trellis" else SMALL_FLOATS.get(spec.format) or ("codes4" if number.bits <= 4 else "codes8")
    return PackedMeta(LAYOUT, store, scale_type, n, k, kpad, group, -(-k // group), not spec.symmetric, table, spec)


def aligned(nbytes: int) -> np.ndarray:
    """Zeroed uint8 [nbytes] that starts at a multiple of 64."""
    raw = np.zeros(nbytes + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + nbytes]


def pack(q: QTensor, spec: TensorSpec | None = None) -> Packed:
    """A weight [n, k] in panels. Raises KernelError for a spec without a layout (see `why_not`), and for codes that are no numbers.

    spec   what to call it where only the format of the scales differs from q's; scales that do not fit there are kept in float32

    Offsets become zero points, -offset / scale; where a scale is 0, code 0 with zero point 1 and scale -offset.
    """
    if len(q.shape) != 2:
        raise KernelError(f"panel16 holds matrices, not a tensor of shape {q.shape}")
    n, k = q.shape
    packed = blank(spec or q.spec, n, k, q)
    parts = [(row, _rows(q, row, min(row + ROWS_AT_ONCE, n))) for row in range(0, n, ROWS_AT_ONCE)]
    if not all(holds(packed.meta, part) for _, part in parts):
        packed = blank(replace(packed.meta.spec, scale_format="fp32"), n, k, q)
    for row, part in parts:
        pack_rows(packed, row, part)
    return packed


def blank(spec: TensorSpec, n: int, k: int, like: QTensor | None = None) -> Packed:
    """A weight [n, k] of zeros to be filled by `pack_rows`, with the order and the factors of `like`."""
    meta = describe(spec, n, k)
    order = factors = None
    rotation = like.rotation if like is not None else 0
    if rotation and (rotation < 0 or rotation & (rotation - 1) or k % rotation):
        raise KernelError(f"has inputs rotated in blocks of {rotation}, which do not divide {k}")
    if meta.store in FLOATS and like is not None and (like.order is not None or like.factors is not None or rotation):
        raise KernelError("is not quantized: only quantized weights permute, scale or rotate their inputs")
    if like is not None and like.order is not None:
        order = np.ascontiguousarray(like.order, np.int32)
        if order.shape != (k,) or not np.array_equal(np.sort(order), np.arange(k)):
            raise KernelError(f"has an order of columns that is no permutation of {k} inputs")
    if like is not None and like.factors is not None:
        factors = np.ascontiguousarray(like.factors, np.float32)
        if factors.shape != (k,) or not np.isfinite(factors).all():
            raise KernelError(f"has factors of inputs that are not {k} finite numbers")
    return Packed(aligned(meta.nbytes), meta, order, factors, rotation)


def holds(meta: PackedMeta, part: QTensor) -> bool:
    """Whether the scales of some rows are exact in the type that `meta` keeps them in."""
    if meta.store in FLOATS or meta.scale_type == "fp32":
        return True
    scales, _, _ = _scales_and_zeros(part, meta)
    number = formats.get(meta.scale_type)
    return bool(np.array_equal(number.decode(number.encode(scales)), scales))


def pack_rows(packed: Packed, row: int, part: QTensor) -> None:
    """Puts the rows of `part` at `row` (a multiple of meta.unit) of a packed weight that is being filled; `part` is of the packed spec, its scales perhaps
    of a narrower type."""
    meta = packed.meta
    count = part.shape[0]
    if not (_same(part.order, packed.order) and _same(part.factors, packed.factors) and part.rotation == packed.rotation):
        raise KernelError("has rows that permute, scale or rotate their inputs in different ways")
    if meta.store == "trellis":
        return _pack_tiles(packed, row, part)
    panels = packed.blob.reshape(meta.panels, meta.panel_bytes)[row // PANEL : -(-(row + count) // PANEL)]
    values = panels[:, meta.values_offset :]
    if meta.store in FLOATS:
        codes = part.dequantize() if part.spec.format == "fp16" else np.asarray(part.codes)
        lanes = _lanes(codes)  # [panels, 16, k]
        size = lanes.dtype.itemsize
        values[:, : 16 * size * meta.k] = np.ascontiguousarray(lanes.transpose(0, 2, 1)).view(np.uint8).reshape(len(panels), -1)
        return
    scales, zeros, folded = _scales_and_zeros(part, meta)
    stored = formats.get(meta.scale_type).encode(_lanes(scales).transpose(0, 2, 1))
    panels[:, : meta.zeros_offset] = np.ascontiguousarray(stored).view(np.uint8).reshape(len(panels), -1)
    if zeros is not None:
        flat = np.ascontiguousarray(_lanes(zeros).transpose(0, 2, 1), np.float32)
        panels[:, meta.zeros_offset : meta.zeros_offset + flat[0].nbytes] = flat.view(np.uint8).reshape(len(panels), -1)
    codes = np.asarray(part.codes)
    if folded is not None:
        codes = np.where(np.repeat(folded, meta.group, axis=1)[:, : meta.k], codes.dtype.type(0), codes)
    if meta.store in NOT_FINITE and codes.size and int((codes & np.uint8(0x7F)).max()) >= NOT_FINITE[meta.store]:
        raise KernelError(f"holds codes of {part.spec.format} that are NaN or infinity", remedy="the weights are damaged: fetch them again")
    if meta.store == "codes4":
        shift = 8 if codes.dtype == np.int8 else 0
        padded = np.zeros((count, meta.kpad), np.uint8)
        padded[:, : meta.k] = (codes + np.int8(shift)).view(np.uint8) if shift else codes
        steps = _lanes(padded).reshape(len(panels), PANEL, meta.kpad // STEP, 2, 8, 4)  # half (low, high nibble), step, k
        both = steps[:, :, :, 0] | (steps[:, :, :, 1] << 4)
        values[:, : 8 * meta.kpad] = both.transpose(0, 2, 3, 1, 4).reshape(len(panels), -1)
    else:
        padded8 = np.zeros((count, meta.kpad), np.int8)
        padded8[:, : meta.k] = _signed(codes) if meta.store == "codes8" else codes.view(np.int8)
        fours = _lanes(padded8).reshape(len(panels), PANEL, meta.kpad // 4, 4)
        values[:, : 16 * meta.kpad] = fours.transpose(0, 2, 1, 3).reshape(len(panels), -1).view(np.uint8)


def unpack(packed: Packed, rows: slice | None = None) -> QTensor:
    """The QTensor that was packed, or its rows [start, stop); start a multiple of 16."""
    meta, spec = packed.meta, packed.meta.spec
    start, stop = (0, meta.n) if rows is None else (rows.start or 0, meta.n if rows.stop is None else min(rows.stop, meta.n))
    count = stop - start
    panels = packed.blob.reshape(meta.panels, meta.panel_bytes)[start // PANEL : -(-stop // PANEL)]
    if meta.store == "trellis":
        return _unpack_tiles(packed, start, stop)
    values = panels[:, meta.values_offset :]
    shape = (count, meta.k)
    if meta.store in FLOATS:
        dtype = np.dtype(np.float32 if meta.store == "f32" else np.uint16)
        lanes = np.ascontiguousarray(values[:, : 16 * dtype.itemsize * meta.k]).view(dtype).reshape(len(panels), meta.k, PANEL)
        codes = _unlane(lanes.transpose(0, 2, 1), count)
        return QTensor(codes.astype(np.float16) if spec.format == "fp16" else codes, None, spec, shape)  # these are never permuted or scaled
    if meta.store == "codes4":
        both = np.ascontiguousarray(values[:, : 8 * meta.kpad]).reshape(len(panels), meta.kpad // STEP, 8, PANEL, 4).transpose(0, 3, 1, 2, 4)
        halves = np.stack((both & 15, both >> 4), axis=3)
        codes = _unlane(halves.reshape(len(panels), PANEL, meta.kpad), count)[:, : meta.k]
        if formats.get(spec.format).kind == "int" and spec.symmetric:
            codes = (codes.view(np.int8) - np.int8(8)).astype(np.int8)
    else:
        fours = np.ascontiguousarray(values[:, : 16 * meta.kpad]).view(np.int8).reshape(len(panels), meta.kpad // 4, PANEL, 4)
        codes = _unlane(fours.transpose(0, 2, 1, 3).reshape(len(panels), PANEL, meta.kpad), count)[:, : meta.k]
        if meta.store != "codes8":
            codes = codes.view(np.uint8)
        elif not spec.symmetric:
            codes = (codes.astype(np.int16) + 128).astype(np.uint8)
    width = np.dtype(np.float32 if meta.scale_type == "fp32" else np.float16 if meta.scale_type == "fp16" else np.uint16)
    stored = np.ascontiguousarray(panels[:, : meta.zeros_offset]).view(width).reshape(len(panels), meta.groups, PANEL)
    scales = _unlane(formats.get(meta.scale_type).decode(stored).transpose(0, 2, 1), count)
    zeros = None
    if meta.has_zeros:
        flat = np.ascontiguousarray(panels[:, meta.zeros_offset : meta.zeros_offset + meta.groups * PANEL * 4]).view(np.float32)
        zeros = _unlane(flat.reshape(len(panels), meta.groups, PANEL).transpose(0, 2, 1), count) + np.float32(128 if meta.store == "codes8" else 0)
    two_level = formats.get(spec.format).two_level
    return QTensor(np.ascontiguousarray(codes), _cells(scales, spec), spec, shape, None if zeros is None else _cells(zeros, spec),
                   outer=np.float32(1) if two_level else None, order=packed.order, factors=packed.factors,
                   rotation=packed.rotation)


def _steps(rows: np.ndarray) -> np.ndarray:
    """[rows, ...] as [tiles, 64, ...] by steps of the trellis: step t of a tile is its row 16 * (t % 4) + t / 4. Missing rows are zeros."""
    tiles = -(-len(rows) // TILE)
    whole = np.zeros((tiles * TILE, *rows.shape[1:]), rows.dtype)
    whole[: len(rows)] = rows
    return np.ascontiguousarray(np.swapaxes(whole.reshape(tiles, 4, PANEL, *rows.shape[1:]), 1, 2)).reshape(tiles, TILE, *rows.shape[1:])


def _pack_tiles(packed: Packed, row: int, part: QTensor) -> None:
    """pack_rows of a trellis: rings of 64 steps, of which each state holds several. Raises KernelError for states that do not follow each other."""
    meta, bits = packed.meta, packed.meta.spec.bits
    count = part.shape[0]
    tiles = packed.blob.reshape(-1, 4 * meta.panel_bytes)[row // TILE : -(-(row + count) // TILE)]
    scales = np.zeros((len(tiles) * TILE, 1), np.float32)
    scales[:count] = np.asarray(part.scales, np.float32)
    stored = formats.get(meta.scale_type).encode(scales.reshape(len(tiles), TILE))
    tiles[:, : 4 * meta.zeros_offset] = np.ascontiguousarray(stored).view(np.uint8)
    states = np.asarray(part.codes)
    steps, known = _steps(states), _steps(np.ones((count, 1), bool))
    digits = np.zeros(steps.shape, np.uint8)
    for ahead in reversed(range(formats.get(meta.spec.format).code_bits // bits)):  # rows that are missing are known from those before them
        mine = np.roll(digits_of(steps, bits, ahead), ahead, axis=1).astype(np.uint8)
        digits = np.where(np.roll(known, ahead, axis=1), mine, digits)
    if not np.array_equal(_unsteps(_states(digits, bits), count), states):
        raise KernelError("holds states of a trellis that do not follow each other", remedy="only `octavo quantize --method trellis` makes them")
    rings = np.zeros((len(tiles), meta.kpad, 8 * bits), np.uint8)
    by_column = np.swapaxes(digits, 1, 2)
    if bits == 3:
        rings[:, : meta.k, :16], rings[:, : meta.k, 16:] = pack_bits(by_column & 3, 2), pack_bits(by_column >> 2, 1)
    else:
        rings[:, : meta.k] = pack_bits(by_column, bits)
    tiles[:, -8 * bits * meta.kpad :] = rings.reshape(len(tiles), -1)


def _unpack_tiles(packed: Packed, start: int, stop: int) -> QTensor:
    """Rows [start, stop) of a trellis."""
    meta, bits, first = packed.meta, packed.meta.spec.bits, start // TILE
    tiles = packed.blob.reshape(-1, 4 * meta.panel_bytes)[first : -(-stop // TILE)]
    rings = tiles[:, -8 * bits * meta.kpad :].reshape(len(tiles), meta.kpad, 8 * bits)[:, : meta.k]
    if bits == 3:
        by_column = unpack_bits(np.ascontiguousarray(rings[..., :16]), 2, TILE) | (unpack_bits(np.ascontiguousarray(rings[..., 16:]), 1, TILE) << 2)
    else:
        by_column = unpack_bits(np.ascontiguousarray(rings), bits, TILE)
    states = _unsteps(_states(np.swapaxes(by_column, 1, 2), bits), stop - first * TILE)[start - first * TILE :]
    width = np.dtype(np.float32 if meta.scale_type == "fp32" else np.float16 if meta.scale_type == "fp16" else np.uint16)
    scales = formats.get(meta.scale_type).decode(np.ascontiguousarray(tiles[:, : 4 * meta.zeros_offset]).view(width)).reshape(-1, 1)
    return QTensor(states, scales[start - first * TILE : stop - first * TILE], meta.spec, states.shape, order=packed.order, factors=packed.factors,
                   rotation=packed.rotation)


def _states(digits: np.ndarray, bits: int) -> np.ndarray:
    """uint16 states of digits [tiles, 64 steps, k]: each from its step on, around the end."""
    return state_of(np.stack([np.roll(digits, -ahead, axis=1) for ahead in range(12 // bits)]), bits)


def _unsteps(steps: np.ndarray, count: int) -> np.ndarray:
    """The inverse of `_steps`: [count, ...]."""
    rows: np.ndarray = np.swapaxes(steps.reshape(len(steps), PANEL, 4, *steps.shape[2:]), 1, 2).reshape(-1, *steps.shape[2:])[:count]
    return np.ascontiguousarray(rows)


def _rows(q: QTensor, start: int, stop: int) -> QTensor:
    """Rows [start, stop) of q. Scales that cross rows stay whole: `_scales_and_zeros` spreads them."""
    spread = q.spec.granularity in ("tensor", "block") and q.scales is not None

    def part(array: Any) -> Any:
        if array is None:
            return None
        array = np.asarray(array)
        if spread:
            per = q.shape[0] if q.spec.granularity == "tensor" else q.spec.size
            array = np.repeat(array, per, axis=0)
        return array[start:stop]

    return QTensor(np.asarray(q.codes)[start:stop], part(q.scales), q.spec, (stop - start, q.shape[1]), part(q.zeros), part(q.offsets), q.outer,
                   q.order, q.factors, q.rotation)


def _signed(codes: np.ndarray) -> np.ndarray:
    return codes if codes.dtype == np.int8 else (codes.astype(np.int16) - 128).astype(np.int8)


def _same(one: Any, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _scales_and_zeros(part: QTensor, meta: PackedMeta) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """(scales, zeros, folded) [rows, groups]: float32, zeros already moved by 128 where codes8 stores unsigned codes; folded: groups whose codes
    become 0 because their numbers are all the offset, None where there are none."""
    rows = part.shape[0]
    scales = np.asarray(part.whole_scales, np.float32)

    def spread(array: np.ndarray) -> np.ndarray:
        if array.shape[0] != rows and part.spec.granularity == "block":
            return np.repeat(array, part.spec.size, axis=0)[:rows]
        return np.broadcast_to(array, (rows, array.shape[1])) if array.shape[0] != rows else array

    scales, folded = spread(scales), None
    if not meta.has_zeros:
        if part.zeros is not None or part.offsets is not None:
            raise KernelError(f"is symmetric {part.spec.format}, which has neither zero points nor offsets")
        return scales, None, None
    if part.zeros is not None:
        zeros = spread(np.asarray(part.zeros, np.float32))
    elif part.offsets is not None:
        offsets = spread(np.asarray(part.offsets, np.float32))
        with np.errstate(over="ignore"):
            zeros = -offsets / np.where(scales == 0, np.float32(1), scales)
        folded = ((scales == 0) & (offsets != 0)) | np.isinf(zeros)  # infinite: the scale is nothing beside the offset
        if folded.any():
            scales, zeros = np.where(folded, -offsets, scales), np.where(folded, np.float32(1), zeros)
        else:
            folded = None
    else:
        raise KernelError(f"is asymmetric {part.spec.format} and comes without zero points")
    return scales, zeros - np.float32(128) if meta.store == "codes8" else zeros, folded


def _cells(rows: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """One row of scales per cell again, where cells span rows."""
    if spec.granularity == "tensor":
        return np.ascontiguousarray(rows[:1])
    return np.ascontiguousarray(rows[:: spec.size] if spec.granularity == "block" else rows)


def _lanes(rows: np.ndarray) -> np.ndarray:
    """[count, width] -> [panels, 16, width], missing rows zero."""
    count, width = rows.shape
    missing = -count % PANEL
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, width), rows.dtype)])
    return rows.reshape(-1, PANEL, width)


def _unlane(lanes: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(lanes.reshape(-1, lanes.shape[-1])[:count])
