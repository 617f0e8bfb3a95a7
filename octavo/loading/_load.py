"""load(): from the name of a model to a model that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from .. import layouts
from ..cache import PAGE, KVPool
from ..checkpoints import Checkpoint, open_checkpoint
from ..checkpoints.octavo import OctavoCheckpoint
from ..kernels.op import Backend
from ..layers import Declared, declare
from ..machine import detect
from ..models import Decoder, Rounding, read_model
from ..policy import Dispatch
from ..settings import read_settings
from ..text import Text
from ._assign import Job, assign, find
from ._choices import choose_cache, choose_plan, make_backend
from ._kept import Kept, KeptWriter, fits
from ._memory import check_fits, peak, predict
from ._model import Bound, LoadedModel
from ._report import LoadReport, OnProgress, Progress
from ._stream import make_packed, make_tensor, make_vector, row_chunks

LEAST_PAGES = 2       # of the key-value cache
PAGE_BYTES = 4096     # of mapped files


def load(source: str | Path, *, quantization: str | None = None, kv_cache: str | None = None, backend: str = "native", threads: int | None = None,
         isa: str | None = None, cache_dir: str | Path | None = None, use_cache: bool = True, max_model_len: int | None = None,
         revision: str | None = None, on_progress: OnProgress | None = None) -> LoadedModel:
    """A model folder, a .gguf file or a hub id, quantized as it loads.

    quantization   a preset (32bit 16bit 8bit 4bit) or any name that `octavo explain` reads; None: as stored, or 16 bits
    kv_cache       bf16, int8, fp32 or a name of the grammar; None: what the precision says
    backend        native or reference (NumPy: slow, any format)
    threads, isa   of the native kernels; None: all cores, the best instruction set
    cache_dir      where quantized models are kept for the next start; use_cache=False neither looks there nor writes
    max_model_len  longest sequence to be served; None: what the model was made for
    on_progress    called before the first weight is read (the report then holds the predicted peak), before each, and at the end; what it
                   raises ends the load

    Raises UsageError, CheckpointError, ModelError, SchemeError, KernelError, or CapacityError when it will not fit.
    """
    began = time.perf_counter()
    settings = read_settings()
    folder = Path(cache_dir).expanduser() if cache_dir is not None else settings.cache_dir
    isa = isa or settings.isa
    machine = detect(isa)
    checkpoint = open_checkpoint(source, revision=revision)
    choice = choose_plan(quantization, checkpoint, machine)
    plan = choice.plan
    rounding: Rounding = "fp32" if plan.default.activation.format == "fp32" else "bf16"
    model, declared, found = _fit_model(checkpoint, max_model_len, rounding)
    ops = make_backend(backend, threads or settings.threads, isa)
    dispatch = Dispatch({ops.name: ops})
    jobs, notes = assign(found, declared.wanted, checkpoint.tensors, plan, dispatch)
    cache_spec, cache_note = choose_cache(kv_cache, plan, model.head_dims, dispatch)

    packable = all(layouts.why_not(job.kept) is None for job in jobs)
    kept = Kept(folder, checkpoint, plan, jobs, declared.wanted) if use_cache and packable and not isinstance(checkpoint, OctavoCheckpoint) else None
    copy, damage = kept.open() if kept is not None else (None, "")
    origin: Checkpoint = copy if copy is not None else checkpoint
    tokenizer_files = origin.tokenizer_files()
    text = Text(tokenizer_files["tokenizer"], tokenizer_files["config"], tokenizer_files["generation"])

    report = LoadReport(
        source=str(source), codec=checkpoint.codec, model_type=str(checkpoint.config.get("model_type")), scheme=str(plan), reason=choice.reason,
        backend=ops.name, cache_format=cache_spec.format, stored_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        weight_bytes=sum(job.nbytes for job in jobs), predicted=predict(checkpoint, jobs, declared.wanted, declared.tables),
        kv_bytes_per_token=KVPool.bytes_per_page(model.kv_heads, model.head_dims, cache_spec) // PAGE, cache_hit=copy is not None,
        notes=[note for note in (*notes, cache_note, damage) if note],
    )
    if copy is not None:
        report.predicted["temporaries"] = 0
    check_fits(report.predicted, machine.memory_available, LEAST_PAGES * PAGE * report.kv_bytes_per_token)

    bound = Bound(ops)
    step = _steps(report, jobs, on_progress)
    for table in declared.tables.values():
        bound.tables[table.name] = ops.constant(table.make())
    vectors = [want.name for want in declared.wanted.values() if not want.uses]
    if copy is not None:
        _take(copy, jobs, {name: name for name in vectors}, bound, ops, step)
    elif isinstance(checkpoint, OctavoCheckpoint) or kept is None:
        _take(checkpoint, jobs, {name: found[name] for name in vectors}, bound, ops, step)
    else:
        with kept.writer(checkpoint, plan) as writer:
            _take(checkpoint, jobs, {name: found[name] for name in vectors}, bound, ops, step, writer)
            writer.finish(tokenizer_files)
        if writer.note:
            report.notes.append(writer.note)
    loaded = LoadedModel(_name(str(source)), model, bound, ops, text, checkpoint.config, plan, cache_spec, report)
    report.seconds, report.measured_peak = time.perf_counter() - began, peak()
    step(None)
    return loaded


def _fit_model(checkpoint: Checkpoint, max_model_len: int | None, rounding: Rounding) -> tuple[Decoder, Declared, dict[str, str]]:
    """(architecture, its tensors, where they are). A head that is stored beside the embedding it is said to share is used if it differs."""
    model = read_model(checkpoint.config, max_model_len=max_model_len, rounding=rounding)
    names = {model.canonical(name): name for name in checkpoint.tensors}
    if model.tied and {"lm_head.weight", "model.embed_tokens.weight"} <= names.keys():
        if _same(checkpoint, names["lm_head.weight"], names["model.embed_tokens.weight"]):
            model.ignored = (*model.ignored, "lm_head.weight")
        else:
            model = read_model(checkpoint.config, max_model_len=max_model_len, rounding=rounding, tied=False)
    declared = declare(model.describe)
    return model, declared, find(checkpoint, model, declared.wanted)


def _same(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors hold the same numbers; looks at a few rows at a time."""
    shape = checkpoint.tensors[one].shape
    if shape != checkpoint.tensors[other].shape or len(shape) != 2:
        return False
    equal = all(np.array_equal(checkpoint.read(one, rows).dequantize(), checkpoint.read(other, rows).dequantize()) for rows in row_chunks(*shape))
    checkpoint.release(one)
    checkpoint.release(other)
    return equal


def _take(checkpoint: Checkpoint, jobs: list[Job], vectors: Mapping[str, str], bound: Bound, ops: Backend, step: Callable[[Job | None], None],
          writer: KeptWriter | None = None) -> None:
    """Weights and vectors into `bound`: mapped where the checkpoint holds them packed as wanted, else made from its rows."""
    for job in jobs:
        step(job)
        mapped = checkpoint.packed(job.name) if isinstance(checkpoint, OctavoCheckpoint) and job.name in checkpoint.tensors else None
        if mapped is not None and fits(mapped, job):
            mapped.blob[::PAGE_BYTES].max()  # read from disk now, in order, rather than during the first answer
            bound.weights[job.name] = ops.adopt(mapped, job.activation)
        elif layouts.why_not(job.kept) is None:
            packed = make_packed(checkpoint, job)
            bound.weights[job.name] = ops.adopt(packed, job.activation)
            if writer is not None:
                writer.weight(job.name, packed)
        else:
            bound.weights[job.name] = ops.prepare(make_tensor(checkpoint, job), job.activation)
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


def _name(source: str) -> str:
    """What clients call the model: the hub id, the folder's name, or the file's without its ending."""
    path = Path(source).expanduser()
    if not path.exists():
        return source
    resolved = path.resolve()
    return resolved.stem if resolved.suffix == ".gguf" else resolved.name

