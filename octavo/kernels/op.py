"""The op contract: what layers and models may call, and all that a backend must offer.

A value is whatever the backend passes around (a NumPy array in `reference`, a recorded buffer in `native`); models treat it as opaque.
Rows are tokens of the step, all sequences one after another. Widths are known when the model is described; the number of rows is not:
it changes from step to step. Values are float32 between ops. `rms_norm`, `rope`, `add`, ... return a new value and never change
their input as far as the caller can tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ..qtensor import QTensor
from ..schemes import CacheSpec, TensorSpec

if TYPE_CHECKING:
    from ..cache import KVPool, Step, Tuning
    from ..layouts import Packed

Value = Any
Array = Any
Prepared = Any  # a Weight, of this very backend


@dataclass(frozen=True)
class Problem:
    """What a linear (or another op) asks of a kernel. Kernels answer `None` (can) or the reason why not."""

    op: str                       # "linear", "embed", "attention"
    n: int = 0                    # output features
    k: int = 0                    # input features
    weight: TensorSpec | None = None
    activation: TensorSpec | None = None
    cache: TensorSpec | None = None   # of keys or of values
    head_dim: int = 0


@dataclass(frozen=True)
class Draws:
    """How the next tokens of some sequences are drawn, as csrc/sampling.h does: arrays [sequences] of temperature (0: the likeliest token), top_k (0: all),
    top_p and min_p; u float64 [steps, sequences] in [0, 1) picks."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    u: np.ndarray


CACHE_FORMATS = ("fp32", "bf16", "int8", "fp8e4m3", "int4")
WIDEST_TURNED = 1024  # of a head that is rotated: csrc/lanes/rotate.inl.h


def scale_refusal(activation: TensorSpec, input_scale: float) -> str | None:
    """Why a weight cannot be prepared for such inputs, or None."""
    if not activation.quantized or activation.dynamic or 0 < input_scale < math.inf:
        return None
    return "the scale of static activations comes from calibration, and none is stored with this weight"


def cache_refusal(problem: Problem) -> str | None:
    """Why no backend stores keys or values like this, or None."""
    spec = problem.cache
    if spec is None:
        return None
    if spec.format not in CACHE_FORMATS:
        return f"the cache stores {', '.join(CACHE_FORMATS)}, not {spec.format}"
    if spec.quantized and (spec.granularity, spec.dynamic) not in (("token", True), ("tensor", False)):
        per = "head" if spec.granularity == "token" else spec.granularity  # of static ones
        return f"the cache has a scale per token and head, or one that is stored with the model, not per {per}"
    if spec.format != "int4" and not spec.symmetric:
        return f"only 4-bit codes of the cache have offsets, not {spec.format}"
    if spec.format == "int4" and (not spec.dynamic or spec.scale_format != "bf16"):
        return "4-bit codes of the cache have bfloat16 scales per token and head"
    if spec.format == "int4" and problem.head_dim > WIDEST_TURNED:
        return f"4-bit codes are rotated, which is done for heads of at most {WIDEST_TURNED}"
    return None


class Weight(Protocol):
    """A weight prepared for a backend (packed panels for `native`); `n` rows, `k` columns."""

    @property
    def n(self) -> int: ...

    @property
    def k(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


class Ops(Protocol):
    """One backend. `native` records these calls once and replays them; `reference` computes them at once in float64."""

    name: str

    def supports(self, problem: Problem) -> str | None:
        """None when this backend runs the problem in its own precision, else the reason why not."""

    def prepare(self, tensor: QTensor, activation: TensorSpec, input_scale: float = 0.0) -> Weight:
        """A QTensor [n, k] in the form the backend computes with. The QTensor may be dropped afterwards. input_scale: of a static `activation`."""

    def constant(self, array: Array) -> Value:
        """A float32 vector or matrix that ops below take as weight (norm gains, biases, rope tables)."""

    def embed(self, weight: Prepared, factor: float = 1.0) -> Value:
        """[rows, k]: row `tokens[r]` of the weight times `factor`."""

    def linear(self, x: Value, weights: Sequence[Prepared], biases: Sequence[Value | None] | None = None,
               residual: Value | None = None) -> tuple[Value, ...]:
        """One output [rows, n] per weight, all reading the same x [rows, k] (which is quantized once if the weights' activation spec
        says so). `residual` [rows, n] is added to the first output; then there is exactly one weight."""

    def rms_norm(self, x: Value, gain: Value, eps: float, offset: float = 0.0, groups: int = 1) -> Value:
        """x / sqrt(mean(x^2) + eps) * (offset + gain) over each of `groups` equal parts of a row (groups = heads for q/k norms)."""

    def rope(self, x: Value, table: Value, heads: int, head_dim: int, rotary: int) -> Value:
        """Rotary embedding on the first `rotary` of each head's dimensions, pairs (i, i + rotary/2); table [positions, rotary] holds
        cos in the first half of a row and sin in the second, indexed by the step's positions."""

    def attention(self, q: Value, k: Value, v: Value, layer: int, *, heads: int, kv_heads: int, head_dim: int, scale: float,
                  window: int = 0, softcap: float = 0.0) -> Value:
        """Writes k, v [rows, kv_heads*head_dim] to the step's slots of cache layer `layer`, then causal attention of q
        [rows, heads*head_dim] over each sequence's pages. window > 0: a token sees itself and window-1 before it."""

    def gate(self, kind: Literal["silu", "gelu_tanh", "gelu"], gate: Value, up: Value) -> Value:
        """act(gate) * up"""

    def add(self, x: Value, y: Value) -> Value: ...

    def softcap(self, x: Value, cap: float) -> Value: ...

    def select(self, x: Value) -> Value:
        """[logit_rows, width]: the rows whose logits the step wants."""


class Program(Protocol):
    """A captured description, to be run step after step."""

    def run(self, step: Step, pool: KVPool) -> Array:
        """float32 [logit_rows, vocab]; may be a buffer that the next run writes again. Of a GPU they stay there until they are read: np.asarray, indexing."""

    def best(self, logits: Array) -> tuple[Array, Array]:
        """(place, value) of the largest of each row of the `logits` that the last run gave; a NaN counts as the largest of all."""


class Backend(Ops, Protocol):
    """Ops that can be captured: what loading needs of a backend.

    panels    weights come packed by `layouts` (`adopt`) or as QTensors (`prepare`); else this is a DeviceBackend
    balanced  its caches store keys by the balance that a Tuning knows
    """

    panels: bool
    balanced: bool

    def adopt(self, packed: Packed, activation: TensorSpec, input_scale: float = 0.0) -> Weight:
        """A weight packed by `layouts`, used in place: the array may be a mapped file. input_scale: see `prepare`."""

    def new_pool(self, pages: int, kv_heads: list[int], head_dims: list[int], spec: TensorSpec | CacheSpec, tuning: Sequence[Tuning] | None = None) -> KVPool:
        """An empty key-value cache. MemoryError or CapacityError where there is no room for it."""

    def memory(self) -> tuple[int, int] | None:
        """Bytes that are free where weights and cache lie, and all there are; None: in the machine's memory, which loading knows."""

    def capture(self, describe: Callable[[Ops], Value]) -> Program:
        """The description as a program. Weights and constants are made before, outside of it."""


class DeviceBackend(Backend, Protocol):
    """A backend whose weights lie in the memory of a device (`panels` is False): they come in pieces of rows, quantized there."""

    def on_device(self, tensor: QTensor) -> QTensor:
        """The same numbers with arrays where this backend computes, so that they are quantized there."""

    def assemble(self, parts: Iterable[QTensor], n: int, activation: TensorSpec, input_scale: float = 0.0) -> Weight:
        """`prepare` of a weight that comes in pieces of rows, [n, k] together."""

    def bytes_of(self, spec: TensorSpec, n: int, k: int) -> int:
        """Bytes of a weight [n, k] in this precision."""

    def peak(self, begin: bool = False) -> int | None:
        """The most bytes that were used on the device since the last call with `begin`; None where nobody counts."""

    def facts(self) -> dict[str, str]:
        """What measurements on this device depend on."""
