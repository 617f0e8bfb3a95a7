"""Which plan, which cache format, which backend: what the caller did not say is decided here, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..checkpoints import Checkpoint
from ..checkpoints.octavo import OctavoCheckpoint
from ..errors import KernelError, UsageError
from ..kernels.op import Backend, Problem
from ..machine import find_gpus, shows_gpu
from ..policy import Dispatch
from ..registry import find
from ..schemes import CacheSpec, Choice, Plan, Scheme, TensorSpec, cache_of, cache_pairs, choose, parse_cache
from ..schemes._types import default_spec

if TYPE_CHECKING:
    from ..machine import Machine

BACKENDS = "octavo.kernels"
DEVICES = ("auto", "cpu", "cuda")
LEAST_CAPABILITY = (8, 0)  # of a GPU that `auto` takes: kernels/triton refuses those before
BF16 = TensorSpec("bf16")


def backend_on(device: str | None, backend: str) -> str:
    """The backend for `--device`: cuda takes the GPU's, auto does so where there is one that can be used; None and cpu: as named.

    Raises UsageError for a device that is not known, and for a backend that does not run on it.
    """
    if device is not None and device not in DEVICES:
        raise UsageError(f"unknown device {device!r}", where="--device", remedy=f"known: {', '.join(DEVICES)}")
    if device == "cuda" and backend == "reference":
        raise UsageError("the reference backend computes on the CPU", where="--device cuda", remedy="leave --backend out")
    if device == "cuda" or (device == "auto" and backend == "native" and _gpu_can()):
        return "triton"
    return backend


def _gpu_can() -> bool:
    """Whether a GPU is there that the kernels run on, and what they need is installed. Where the system shows none, nothing is imported."""
    return shows_gpu() and not _missing() and any(gpu.capability >= LEAST_CAPABILITY for gpu in find_gpus()[:1])


def _missing() -> list[str]:
    """What the GPU's kernels need and is not installed."""
    return [name for name in ("torch", "triton") if find_spec(name) is None]


def why_not_there(device: str | None, backend: str) -> str:
    """Where `auto` leaves a GPU that the system shows to others and the CPU computes: why, in a sentence; else "". Asks torch only if the GPU could be used."""
    if device != "auto" or backend != "native" or not shows_gpu():
        return ""
    if missing := _missing():
        return f"the CPU computes: the GPU's kernels need {' and '.join(missing)} (pip install 'octavo[gpu]')"
    gpus = find_gpus()[:1]
    if not gpus:
        return "the CPU computes: torch finds no NVIDIA GPU that it can use (is it a torch with CUDA, and does nvidia-smi run?)"
    return f"the CPU computes: {gpus[0].name} has compute capability {_written(gpus[0].capability)}, the GPU's kernels need 8.0 (Ampere), as Triton does"


def _written(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def make_backend(name: str, threads: int | None, isa: str | None) -> Backend:
    """The backend of this name. Raises UnknownNameError with the known ones."""
    kind = find("backend", name, BACKENDS, "KERNELS")
    backend: Backend = kind(threads, isa) if name == "native" else kind()
    return backend


def choose_plan(quantization: str | None, checkpoint: Checkpoint, machine: Machine, capability: tuple[int, int] | None = None) -> Choice:
    """The plan for a name, or for none: as stored. (For weights that are quantized, `plan_as_stored` says more once the model is known.) capability: of the
    GPU that will run it."""
    if quantization is not None:
        return choose(quantization, machine, capability)
    if isinstance(checkpoint, OctavoCheckpoint):
        return Choice(Plan.from_json(checkpoint.plan), "as the checkpoint was quantized")
    sizes: Counter[tuple[str, TensorSpec]] = Counter()
    for info in checkpoint.tensors.values():
        if len(info.shape) == 2 and info.spec is not None:
            sizes[info.stored, info.spec] += info.nbytes
    if not sizes:
        return Choice(_plain("W16A16C16", checkpoint), "as stored (nothing)")
    name, spec = sizes.most_common(1)[0][0]
    if spec.format == "fp32":
        return Choice(_plain("W32A32C32", checkpoint), "as stored (float32)")
    return Choice(_plain("W16A16C16", checkpoint), f"as stored ({name})")


def _plain(name: str, checkpoint: Checkpoint) -> Plan:
    """Unquantized weights, with the cache that the files speak of."""
    plan = Plan.parse(name)
    return plan if checkpoint.cache is None else plan.with_cache(checkpoint.cache)


def plan_as_stored(checkpoint: Checkpoint, found: Mapping[str, str], weights: Iterable[str]) -> Plan | None:
    """The plan that keeps every weight in the precision in which it is stored, activations and cache as the files say; None where nothing is quantized.

    found: name here -> name in the checkpoint; weights: the names here of what linears and embeddings use.
    """
    cache = checkpoint.cache or BF16
    schemes: dict[str, Scheme | None] = {}
    sizes: Counter[Scheme] = Counter()
    for name in weights:
        info = checkpoint.tensors[found[name]]
        scheme = schemes[name] = Scheme(info.spec, info.activation or BF16, cache) if info.spec is not None and info.spec.quantized else None
        if scheme is not None:
            sizes[scheme] += info.nbytes
    if not sizes:
        return None
    default = sizes.most_common(1)[0][0]
    return Plan(default, tuple((name, scheme) for name, scheme in schemes.items() if scheme != default))


def choose_cache(kv_cache: str | None, plan: Plan, head_dims: list[int], dispatch: Dispatch, static: bool = False) -> tuple[TensorSpec | CacheSpec, str]:
    """(format of the key-value cache, a note where it is not the plan's). `static`: the checkpoint has its scales. Raises KernelError when a format that was
    named cannot run."""
    spec = parse_cache(kv_cache) if kv_cache is not None else plan.cache(len(head_dims))
    notes, pairs = [], []
    for width, pair in zip(head_dims, cache_pairs(spec, len(head_dims)), strict=True):
        halves = []
        for half in pair:
            if half.quantized and not half.dynamic and (not static or half.granularity == "token"):
                heads = half.granularity == "token"
                half = default_spec(half.format, "cache")
                notes.append("static scales per head of the key-value cache are not used here: each token has one, computed as it is filled, which loses less"
                             if heads else "the checkpoint has no scales of the key-value cache: they are computed as it is filled")
            try:
                dispatch.choose(Problem("attention", head_dim=width, cache=half))
            except KernelError:
                if kv_cache is not None:
                    raise
                notes.append(f"the key-value cache is bf16: no kernel here stores {half.format}")
                half = BF16
            halves.append(half)
        pairs.append((halves[0], halves[1]))
    return cache_of(pairs) if pairs else BF16, "; ".join(dict.fromkeys(notes))
