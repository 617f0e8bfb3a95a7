"""load(): from the name of a model to a model that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .. import layouts
from ..cache import PAGE, KVPool
from ..checkpoints import Checkpoint
from ..checkpoints.octavo import OctavoCheckpoint
from ..errors import UsageError
from ..kernels.op import Backend
from ..machine import Machine, detect
from ..policy import Dispatch
from ..schemes import CacheSpec, TensorSpec, plan_text
from ..settings import read_settings
from ..text import Text
from ._ahead import Ahead, read_all
from ._assign import Job, what_runs
from ._choices import backend_on, choose_cache, make_backend, why_not_there
from ._kept import KeptWriter, fits, mapped_tokenizer
from ._memory import check_fits, peak, predict
from ._model import Bound, LoadedModel
from ._origin import Origin, Search
from ._report import LoadReport, OnProgress, Progress
from ._sensitivity import CacheSearch
from ._stream import make_packed, make_tensor, make_vector, on_device, piece, staged_bytes

if TYPE_CHECKING:
    from ..kernels.op import DeviceBackend

LEAST_PAGES = 2       # of the key-value cache
USUAL_KL = 0.005      # nats per token, where --kv-cache auto is told no limit


def load(source: str | Path, *, quantization: str | None = None, kv_cache: str | None = None, max_kl: float | None = None, backend: str = "native",
         device: str | None = None, threads: int | None = None, isa: str | None = None, cache_dir: str | Path | None = None, use_cache: bool = True,
         max_model_len: int | None = None, revision: str | None = None, allow_pickle: bool = False, on_progress: OnProgress | None = None) -> LoadedModel:
    """A model folder, a .gguf file or a hub id, quantized as it loads.

    quantization   a preset (32bit 16bit 8bit 4bit), any name that `octavo explain` reads, or a plan in a .json file; None: as stored, or 16 bits
    kv_cache       bf16, int8, fp32 or a name of the grammar (C8, Cfp8, C4, K8V4); auto: by each layer's measured sensitivity; None: what the precision says
    max_kl         with auto: the loss allowed, as the mean KL divergence in nats per token from a bfloat16 cache
    backend        native, reference (NumPy: slow, any format), or triton (a GPU)
    device         cuda: on the GPU; auto: there if one can be used; cpu or None: as `backend` says
    threads, isa   of the native kernels; None: all cores, the best instruction set
    cache_dir      where quantized models are kept for the next start; use_cache=False neither looks there nor writes
    max_model_len  longest sequence to be served; None: what the model was made for
    allow_pickle   read pickled weights (.bin, .pt), by torch's weights_only loader, where a folder has no others
    on_progress    called before the first weight is read (the report then holds the predicted peak), before each, and at the end; what it
                   raises ends the load

    Raises UsageError, CheckpointError, ModelError, SchemeError, KernelError, or CapacityError when it will not fit.
    """
    began = time.perf_counter()
    automatic = kv_cache is not None and kv_cache.strip().lower() == "auto"
    if max_kl is not None and not automatic:
        raise UsageError("bounds the loss of an automatic key-value cache only", where="--max-kl", remedy="add --kv-cache auto, or leave it out")
    plans = foresee(source, quantization=quantization, kv_cache=kv_cache, backend=backend, device=device, threads=threads, isa=isa,
                    cache_dir=cache_dir, use_cache=use_cache, max_model_len=max_model_len, revision=revision, allow_pickle=allow_pickle)
    report, origin, ops, machine = plans.report, plans.origin, plans.ops, plans.machine
    checkpoint, model, declared, jobs, plan = origin.checkpoint, origin.model, origin.declared, origin.jobs, origin.choice.plan
    there = ops.memory()
    check_fits(report.predicted, machine.memory_available if there is None else there[0], LEAST_PAGES * PAGE * report.kv_bytes_per_token)
    gpu = None if ops.panels else cast("DeviceBackend", ops)
    if gpu is not None:
        gpu.peak(begin=True)

    bound = Bound(ops)
    step = _steps(report, jobs, on_progress)
    tables = Ahead(lambda: {table.name: table.make() for table in declared.tables.values()})
    pages = Ahead(lambda: read_all(checkpoint) if isinstance(checkpoint, OctavoCheckpoint) else None)
    vectors = [want.name for want in declared.wanted.values() if not want.uses]
    if origin.copied or origin.kept is None:
        _take(checkpoint, jobs, {name: origin.found[name] for name in vectors}, bound, ops, step)
        origin.remember()
        report.copy = str(checkpoint.path) if origin.copied else ""
    else:
        with origin.kept.writer(checkpoint, plan) as writer:
            _take(checkpoint, jobs, {name: origin.found[name] for name in vectors}, bound, ops, step, writer)
            writer.finish(plans.tokenizer_files)
        if writer.note:
            report.notes.append(writer.note)
        else:
            origin.remember()
            report.copy = str(origin.kept.folder)
    bound.tables.update({name: ops.constant(table) for name, table in tables.result().items()})
    pages.result()
    loaded = LoadedModel(_name(str(source)), model, bound, ops, plans.text, origin.config, plan, plans.cache_spec, report, origin.statics)
    if automatic:
        CacheSearch(loaded).choose(USUAL_KL if max_kl is None else max_kl)
    if gpu is not None and (most := gpu.peak()) is not None:
        held = sum(weight.nbytes for weight in bound.weights.values())
        report.notes.append(f"on the GPU: {most / 1e6:.0f} MB at most while loading, of which weights {held / 1e6:.0f}")
    report.seconds, report.measured_peak = time.perf_counter() - began, peak()
    step(None)
    return loaded


@dataclass(frozen=True)
class Foreseen:
    """What is known before the first weight is read. `report` says it in numbers; the rest is what loading goes on with."""

    report: LoadReport
    origin: Origin
    ops: Backend
    machine: Machine
    text: Text
    tokenizer_files: dict[str, Any]
    cache_spec: TensorSpec | CacheSpec

    @property
    def max_model_len(self) -> int:
        return self.origin.model.max_model_len


def foresee(source: str | Path, *, quantization: str | None = None, kv_cache: str | None = None, backend: str = "native", device: str | None = None,
            threads: int | None = None, isa: str | None = None, cache_dir: str | Path | None = None, use_cache: bool = True,
            max_model_len: int | None = None, revision: str | None = None, allow_pickle: bool = False) -> Foreseen:
    """What `load` with the same arguments is going to do; reads no weights and does not ask whether they fit. Raises as `load` does."""
    quantization = None if quantization is None else plan_text(quantization)
    settings = read_settings()
    folder = Path(cache_dir).expanduser() if cache_dir is not None else settings.cache_dir
    isa = isa or settings.isa
    machine = detect(isa)
    asked = threads or settings.threads
    ops = make_backend(backend_on(device, backend), asked if asked is None or asked < 1 else min(asked, machine.cores), isa)
    dispatch = Dispatch({ops.name: ops})
    origin = Search(source, quantization, max_model_len, revision, folder if use_cache else None, machine, dispatch, ops.name,
                    allow_pickle, ops.panels, getattr(ops, "capability", None)).origin()
    if not ops.panels:
        size = cast("DeviceBackend", ops).bytes_of
        origin = replace(origin, jobs=[replace(job, size=size(job.kept, *job.shape)) for job in origin.jobs])
    checkpoint, model, declared, jobs, plan = origin.checkpoint, origin.model, origin.declared, origin.jobs, origin.choice.plan
    automatic = kv_cache is not None and kv_cache.strip().lower() == "auto"
    cache_spec, cache_note = choose_cache("bf16" if automatic else kv_cache, plan, model.head_dims, dispatch, origin.statics is not None)
    files = mapped_tokenizer(checkpoint) if origin.copied else checkpoint.tokenizer_files()
    text = Text(files["tokenizer"], files["config"], files["generation"])
    report = LoadReport(
        source=str(source), codec=origin.codec, model_type=str(origin.config.get("model_type")), scheme=plan.short, reason=origin.choice.reason,
        backend=ops.name, cache_format=cache_spec.format, stored_bytes=origin.stored_bytes, weight_bytes=sum(job.nbytes for job in jobs),
        predicted=predict(checkpoint, jobs, declared.wanted, declared.tables), cache_hit=origin.copied,
        runs=what_runs(jobs), kv_bytes_per_token=KVPool.bytes_per_page(model.kv_heads, model.head_dims, cache_spec) // PAGE,
        notes=[note for note in (*origin.notes, cache_note, _spare(asked, machine.cores), origin.damage, why_not_there(device, ops.name)) if note],
    )
    if origin.copied:
        report.predicted["temporaries"] = 0
    elif not ops.panels:
        report.predicted["temporaries"] = staged_bytes(jobs)
    return Foreseen(report, origin, ops, machine, text, files, cache_spec)


def _take(checkpoint: Checkpoint, jobs: list[Job], vectors: Mapping[str, str], bound: Bound, ops: Backend, step: Callable[[Job | None], None],
          writer: KeptWriter | None = None) -> None:
    """Weights and vectors into `bound`: mapped where the checkpoint holds them packed as wanted, else made from its rows."""
    gpu = None if ops.panels else cast("DeviceBackend", ops)
    numbers = piece(jobs)
    for job in jobs if gpu is None else sorted(jobs, key=lambda one: -one.nbytes):  # the largest first: what is in the making adds little to little
        step(job)
        mapped = checkpoint.packed(job.name) if isinstance(checkpoint, OctavoCheckpoint) and job.name in checkpoint.tensors else None
        if mapped is not None and fits(mapped, job):
            bound.weights[job.name] = ops.adopt(mapped, job.activation, job.input_scale)
        elif gpu is not None:
            parts = on_device(checkpoint, job, gpu.on_device, numbers)
            bound.weights[job.name] = gpu.assemble(parts, job.shape[0], job.activation, job.input_scale)
        elif layouts.why_not(job.kept) is None:
            packed = make_packed(checkpoint, job)
            bound.weights[job.name] = ops.adopt(packed, job.activation, job.input_scale)
            if writer is not None:
                writer.weight(job.name, packed, job.input_scale)
        else:
            bound.weights[job.name] = ops.prepare(make_tensor(checkpoint, job), job.activation, job.input_scale)
    for name, stored in vectors.items():
        values = make_vector(checkpoint, stored)
        bound.vectors[name] = ops.constant(values)
        if writer is not None:
            writer.vector(name, values)


def _steps(report: LoadReport, jobs: list[Job], on_progress: OnProgress | None) -> Callable[[Job | None], None]:
    """What `_take` calls before each job, and `load` at the end with None."""
    total, done = sum(job.nbytes for job in jobs), 0

    def step(job: Job | None) -> None:
        nonlocal done
        if on_progress is not None:
            on_progress(Progress(report, done if job else total, total, job.name if job else ""))
        done += job.nbytes if job else 0

    return step


def _spare(asked: int | None, cores: int) -> str:
    """More threads than cores would only take the cores from each other; fewer change no bit of the results."""
    running = f"{cores} thread{'s run' if cores > 1 else ' runs'}"
    return f"{running} instead of {asked}: that is how many cores this process may use" if asked and asked > cores else ""


def _name(source: str) -> str:
    """What clients call the model: the hub id, the folder's name, or the file's without its ending."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    resolved = path.resolve()
    return resolved.stem if resolved.suffix == ".gguf" else resolved.name

