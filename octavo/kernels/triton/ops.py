"""TritonOps: ops are recorded once as launches over slots, and replayed for every step (program.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType, ref

import numpy as np
import torch
import triton

from ...cache import Tuning
from ...errors import CapacityError, KernelError
from ...machine import gpu_driver
from ...qtensor import QTensor
from ...schemes import CacheSpec, TensorSpec
from ..op import Ops, Problem, scale_refusal
from . import attention, embed, norm, rope, rows
from . import gate as gates
from ._rounding import INTERPRETED
from .assembly import assembled, bytes_of
from .cached import through
from .choices import Product, ways_of
from .pool import GpuPool, refusal
from .program import Now, Op, TritonProgram
from .weights import GpuWeight, linear, prepare, rounding, supports

if TYPE_CHECKING:
    from ...layouts import Packed

LEAST_CAPABILITY = (8, 0)   # bfloat16 in matrix units
INTERPRETED_AS = (9, 0)     # what the interpreter stands in for


class Constant:
    """A float32 vector or matrix that ops take."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@dataclass(frozen=True)
class Turn:
    """A rotation that was asked for and is not done yet: attention does it while it stores keys."""

    table: Constant
    heads: int
    head_dim: int
    rotary: int


@dataclass(frozen=True)
class Norm:
    """A norm that was asked for and is not done yet: a product that rounds its inputs does both at once."""

    source: Value
    gain: Constant
    eps: float
    offset: float


class Value:
    """A value of the program being recorded: a slot that holds `width` numbers a row, for the step's rows or for its logit rows; float32 where `wide`.

    When the last reference goes, the slot is free for later ops. An op that works in place takes the slot over; the old value is then spent.
    """

    __slots__ = ("__weakref__", "_home", "_slot", "_waiting", "logits", "norm", "turn", "wide", "width")

    def __init__(self, home: Recording, width: int, logits: bool, wide: bool = False, slot: int | None = None, turn: Turn | None = None,
                 norm: Norm | None = None) -> None:
        self._home, self.width, self.logits, self.wide, self.turn, self.norm = home, width, logits, wide, turn, norm
        self._slot: int | None = slot if slot is not None or norm is not None else home.take()
        self._waiting: list[ReferenceType[Value]] = []  # norms of this that are not done
        if norm is not None:
            norm.source._waiting.append(ref(self))

    @property
    def slot(self) -> int:
        """Where it lies, not rotated yet if there is a `turn`."""
        if self.norm is not None:
            norm, self.norm = self.norm, None
            self._slot = self._home.take()
            self._home.rms_norm(norm.source.id, self._slot, self.width, self.logits, norm.gain, norm.eps, norm.offset)
        if self._slot is None:
            raise KernelError("this value was changed in place and can no longer be read", where="model description",
                              remedy="use the value that the op returned")
        return self._slot

    @property
    def id(self) -> int:
        """Where it lies, all done."""
        if self.turn is not None:
            turn, self.turn = self.turn, None
            raw, self._slot = self.slot, self._home.take()
            self._home.rope(raw, self._slot, self.width, self.logits, self.wide, turn)
            self._home.free.append(raw)
        return self.slot

    def hand_over(self, turn: Turn | None = None) -> Value:
        """The same slot under a new value; this one is spent."""
        for waiting in self._waiting:
            value = waiting()
            if value is not None and value.norm is not None:
                _ = value.slot  # what it is the norm of changes now
        fresh = Value(self._home, self.width, self.logits, self.wide, self.id, turn)
        self._slot = None
        return fresh

    def __del__(self) -> None:
        if self._slot is not None:
            self._home.free.append(self._slot)


class Recording:
    """Ops so far, free slots, and what kernels of this program will be asked."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.free: list[int] = []
        self.slots = 0
        self.full = False                    # a plan with 32-bit activations: everything is float32
        self.tile_rows: set[int] = set()
        self.vocabulary = self.positions = 1 << 30
        self.keep: list[Any] = []
        self.products: list[Product] = []

    def take(self) -> int:
        if self.free:
            return self.free.pop()
        self.slots += 1
        return self.slots - 1

    def add(self, name: str, run: Callable[[Now], None], logits: bool) -> None:
        self.ops.append(Op(name, run, logits))

    def rms_norm(self, source: int, out: int, width: int, logits: bool, gain: Constant, eps: float, offset: float, groups: int = 1) -> None:
        """Record the norm of slot `source` into slot `out`."""
        self.add("rms_norm", lambda now: norm.rms_norm(now.values[source], gain.tensor, now.make(out, width, logits, False), eps, offset, groups), logits)

    def rope(self, raw: int, out: int, width: int, logits: bool, wide: bool, turn: Turn) -> None:
        """Record the rotation of slot `raw` into slot `out`."""
        table, heads, dim, rotary = turn.table.tensor, turn.heads, turn.head_dim, turn.rotary
        self.add("rope", lambda now: rope.rope(now.values[raw], now.make(out, width, logits, wide), table, now.positions, heads, dim, rotary), logits)


class TritonOps:
    """Implements op.Backend. device: of torch; None: the first GPU, or the CPU where Triton interprets. Raises KernelError where there is neither."""

    name = "triton"
    panels = False  # weights come as QTensors, not packed
    balanced = True

    def __init__(self, device: str | None = None) -> None:
        there = torch.cuda.is_available()
        self.device = torch.device(device or ("cuda" if there and not INTERPRETED else "cpu"))
        if (self.device.type == "cuda" and not there) or (self.device.type == "cpu" and not INTERPRETED):
            raise KernelError("there is no NVIDIA GPU that torch can use", where="backend triton",
                              remedy="install a torch with CUDA and check nvidia-smi, or use --device cpu")
        self.capability = torch.cuda.get_device_capability(self.device) if self.device.type == "cuda" else INTERPRETED_AS
        if self.capability < LEAST_CAPABILITY:
            name = torch.cuda.get_device_name(self.device)
            raise KernelError(f"{name} has compute capability {self.capability[0]}.{self.capability[1]}; the kernels need 8.0 (Ampere): bfloat16 matrix "
                              "units, and Triton compiles for no older ones", where="backend triton", remedy="use --device cpu, or a newer GPU")
        self.isa = f"sm_{self.capability[0]}{self.capability[1]}" if self.device.type == "cuda" else "interpreter"
        self._recording: Recording | None = None

    def supports(self, problem: Problem) -> str | None:
        if problem.weight is not None and (reason := supports(problem, self.device)) is not None:
            return reason
        return refusal(problem)

    def memory(self) -> tuple[int, int] | None:
        """Bytes of the GPU that are free, what torch keeps for later counted as free, and all it has; None where there is no GPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        return int(free), int(total)

    def peak(self, begin: bool = False) -> int | None:
        """The most bytes of tensors that were on the GPU since the last call with `begin`; None where there is none."""
        if self.device.type != "cuda":
            return None
        if begin:
            torch.cuda.reset_peak_memory_stats(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))

    def facts(self) -> dict[str, str]:
        """What measurements on this device depend on: the GPU, its driver, and who compiles for it."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "interpreter"
        return {"gpu": name, "capability": f"{self.capability[0]}.{self.capability[1]}", "driver": gpu_driver(), "cuda": str(torch.version.cuda),
                "torch": str(torch.__version__), "triton": str(triton.__version__), "kernels": sources()}

    def bytes_of(self, spec: TensorSpec, n: int, k: int) -> int:
        """Bytes of a weight [n, k] in this precision."""
        return bytes_of(spec, n, k)

    def assemble(self, parts: Iterable[QTensor], n: int, activation: TensorSpec, input_scale: float = 0.0) -> GpuWeight:
        """`prepare` of a weight that comes in pieces of rows, [n, k] together. Raises CapacityError where the GPU has no room left."""
        try:
            return assembled(parts, n, activation, input_scale, self.device)
        except torch.cuda.OutOfMemoryError:
            free, total = self.memory() or (0, 0)
            raise CapacityError(f"the GPU has no room for the weights: {free / 1e6:.0f} of {total / 1e6:.0f} MB are free", where="memory",
                                remedy="use fewer bits (--quantization 4bit), end other programs on the GPU (nvidia-smi), or use --device cpu") from None

    def prepare(self, tensor: QTensor, activation: TensorSpec, input_scale: float = 0.0) -> GpuWeight:
        reason = self.supports(Problem("linear", tensor.shape[0], tensor.shape[-1], weight=tensor.spec, activation=activation))
        if (reason := reason or scale_refusal(activation, input_scale)) is not None:
            raise KernelError(reason, where="triton")
        return prepare(tensor, activation, input_scale, self.device)

    def adopt(self, packed: Packed, activation: TensorSpec, input_scale: float = 0.0) -> GpuWeight:
        """A weight that was packed for the native kernels."""
        from ...layouts import unpack

        return self.prepare(unpack(packed), activation, input_scale)

    def on_device(self, tensor: QTensor) -> QTensor:
        """The same numbers with their arrays on the device; bfloat16 bits become float32."""
        if not tensor.spec.quantized:
            return replace(tensor, codes=_numbers(tensor.codes).to(self.device).float(), spec=TensorSpec("fp32"))
        fields = ("codes", "scales", "zeros", "offsets", "outer", "order", "factors")
        found = {name: value for name in fields if (value := getattr(tensor, name)) is not None}
        moved: dict[str, Any] = {name: torch.as_tensor(_owned(value)).to(self.device) for name, value in found.items()}
        return replace(tensor, **moved)

    def constant(self, array: Any) -> Constant:
        return Constant(torch.from_numpy(_owned(np.ascontiguousarray(array, np.float32))).to(self.device))

    def new_pool(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec, tuning: Sequence[Tuning] | None = None) -> GpuPool:
        """An empty key-value cache on the device."""
        return GpuPool(pages, kv_heads, head_dims, spec, tuning, self.device)

    def capture(self, describe: Callable[[Ops], Any]) -> TritonProgram:
        """Records what `describe` does; the value it returns is the result of every run."""
        now = self._recording = Recording()
        try:
            result = describe(self)
            if not result.logits:
                raise KernelError("a description must end in rows that were selected (ops.select)", where="model description")
            now.keep.append(result)  # its slot must not be reused
            return TritonProgram(now.ops, now.slots, result.id, self.device, torch.float32 if now.full else torch.bfloat16, frozenset(now.tile_rows),
                                 (now.vocabulary, now.positions), result.width, now.keep, now.products)
        finally:
            self._recording = None

    @property
    def _now(self) -> Recording:
        if self._recording is None:
            raise KernelError("ops of the triton backend are recorded", where="triton", remedy="call them inside capture(describe)")
        return self._recording

    def embed(self, weight: GpuWeight, factor: float = 1.0) -> Value:
        home = self._now
        out = Value(home, weight.k, False, True)
        home.vocabulary = min(home.vocabulary, weight.n)
        slot = out.id
        home.add("embed", lambda now: embed.embed(weight, now.tokens, now.make(slot, weight.k, False, True), factor), False)
        return out

    def linear(self, x: Value, weights: Sequence[GpuWeight], biases: Sequence[Constant | None] | None = None,
               residual: Value | None = None) -> tuple[Value, ...]:
        home = self._now
        home.full |= any(weight.activation.format == "fp32" for weight in weights)
        vectors = [None if bias is None else bias.tensor for bias in biases or [None] * len(weights)]
        fused = None
        if x.norm is not None and (asked := rounding(weights)) is not None:
            source, fused = x.norm.source.id, (x.norm.gain.tensor, x.norm.eps, *asked, x.norm.offset)
        else:
            source = x.id
        added, logits = None if residual is None else residual.id, x.logits
        wide = logits or residual is not None
        outs = tuple(Value(home, weight.n, logits, wide) for weight in weights)
        slots = [out.id for out in outs]
        products = [Product(weight, logits, wide) for weight in weights]
        home.products += products

        def run(now: Now) -> None:
            given = now.values[source]
            if fused is not None:
                given = rows.normed(given, *fused)
            made = linear(given, weights, vectors, None if added is None else now.values[added], narrow=not wide and now.inner == torch.bfloat16,
                          ways=ways_of(products, now.logit_rows if logits else now.rows), together=now.together)
            for slot, y in zip(slots, made, strict=True):
                now.values[slot] = y

        home.add("linear", run, logits)
        return outs

    def rms_norm(self, x: Value, gain: Constant, eps: float, offset: float = 0.0, groups: int = 1) -> Value:
        home = self._now
        if groups == 1:
            return Value(home, x.width, x.logits, norm=Norm(x, gain, eps, offset))
        source, out = x.id, Value(home, x.width, x.logits)
        home.rms_norm(source, out.id, x.width, x.logits, gain, eps, offset, groups)
        return out

    def rope(self, x: Value, table: Constant, heads: int, head_dim: int, rotary: int) -> Value:
        home = self._now
        home.positions = min(home.positions, len(table.tensor))
        return x.hand_over(Turn(table, heads, head_dim, rotary))

    def attention(self, q: Value, k: Value, v: Value, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float, window: int = 0,
                  softcap: float = 0.0) -> Value:
        home = self._now
        values = v.id
        both = q.turn is not None and k.turn is not None and q.turn.table is k.turn.table and q.turn.rotary == k.turn.rotary
        table = q.turn.table.tensor if both and q.turn is not None else None
        queries, keys = (q.slot, k.slot) if both else (q.id, k.id)
        out = Value(home, q.width, False)
        home.tile_rows.add(attention.tile_rows(heads // kv_heads, head_dim))
        slot = out.id

        def run(now: Now) -> None:
            x, y, z = now.values[queries], now.values[keys], now.values[values]
            now.values[slot] = through(x, y, z, now.pool.layers[layer], now, table, heads, scale, window, softcap)

        home.add("attention", run, False)
        return out

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: Value, up: Value) -> Value:
        home = self._now
        one, other, out = gate.id, up.id, Value(home, up.width, up.logits)
        slot, width, logits = out.id, up.width, up.logits
        home.add("gate", lambda now: gates.gate(kind, now.values[one], now.values[other], now.make(slot, width, logits, False)), logits)
        return out

    def add(self, x: Value, y: Value) -> Value:
        home = self._now
        one, other, out = x.id, y.id, Value(home, x.width, x.logits, x.wide or y.wide)
        slot, width, logits, wide = out.id, x.width, x.logits, out.wide
        home.add("add", lambda now: gates.add(now.values[one], now.values[other], now.make(slot, width, logits, wide)), logits)
        return out

    def softcap(self, x: Value, cap: float) -> Value:
        home = self._now
        source, out = x.id, Value(home, x.width, x.logits, x.wide)
        slot, width, logits, wide = out.id, x.width, x.logits, x.wide
        home.add("softcap", lambda now: gates.softcap(now.values[source], now.make(slot, width, logits, wide), cap), logits)
        return out

    def select(self, x: Value) -> Value:
        home = self._now
        source, out = x.id, Value(home, x.width, True, x.wide)
        slot, width, wide = out.id, x.width, x.wide
        home.add("select", lambda now: embed.take(now.values[source], now.select, now.make(slot, width, True, wide)), True)
        return out


@cache
def sources() -> str:
    """Names this version of the GPU's kernels: measurements of another say nothing about it."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _owned(array: Any) -> Any:
    """A NumPy array that torch takes without complaint: mapped files are read-only."""
    return array.copy() if isinstance(array, np.ndarray) and not array.flags.writeable else array


def _numbers(codes: Any) -> torch.Tensor:
    """Codes of an unquantized format as torch numbers; bfloat16 lies as uint16 bits in NumPy."""
    found = torch.as_tensor(_owned(codes.view(np.int16) if isinstance(codes, np.ndarray) and codes.dtype == np.uint16 else codes))
    return found.view(torch.bfloat16) if found.dtype in (torch.int16, torch.uint16) else found
