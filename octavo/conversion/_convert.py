"""convert(): plan, lay out, fill, publish. What an interrupted run finished is not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoints import Checkpoint, FileWriter, InexactError, Layout, open_checkpoint
from ..checkpoints.gguf import GgufCheckpoint
from ..checkpoints.writing import Partial, index_of, lay_out, nbytes, write_synced
from ..errors import UsageError
from ..machine import detect
from ._files import as_json, copied, made_from_metadata, travelling
from ._pieces import fill
from ._plan import Conversion, Item, RefusedError, Wish, make_plan, plain_config
from ._report import Report, file_names, manifest, rows_of

RECIPE = 1  # changes when the same source and wish give other bytes
MANIFEST = "octavo-manifest.json"
OnProgress = Callable[[int, int, str], None]


def convert(source: str | Path | Checkpoint, out: str | Path, *, to: str, quantization: str | None = None, requantize: bool = False, keep: Sequence[str] = (),
            include: Sequence[str] = (), dtype: str = "", shard_size: int = 5_000_000_000, overwrite: bool = False, dry_run: bool = False,
            code: bool = False, threads: int | None = None, cache_dir: Path | None = None, revision: str | None = None,
            allow_pickle: bool = False, on_progress: OnProgress | None = None) -> Report:
    """Write the checkpoint `source` (a folder, a .gguf file, a hub id, or an open one) as `out`: a folder, or a file for `gguf:TYPE`.

    to            the format: compressed-tensors, gptq, awq, bitsandbytes, fp8, mxfp4, nvfp4, modelopt, gguf:TYPE, safetensors (unquantized)
    quantization  the precision that an unquantized source is rounded to (round to nearest); None: the format's natural one
    requantize    agree to rounding what is quantized already, where the format cannot hold its numbers
    keep, include globs on names: weights to leave unquantized; weights to quantize although the convention leaves them (lm_head, embeddings)
    dtype         bf16, fp16, fp32 for what stays unquantized; "": as stored, and float32, which is exact, for what was quantized
    shard_size    most bytes of a file
    code          let *.py files travel along, too
    on_progress   called with (bytes done, bytes in all, name of a tensor)

    An interrupted run leaves a hidden folder beside `out`; the same call goes on with it and ends with the same bytes.
    Raises UsageError, SchemeError, CheckpointError (RefusedError where numbers would change without agreement).
    """
    began = time.perf_counter()
    wish = Wish(to, quantization, requantize, tuple(keep), tuple(include), dtype, shard_size)
    checkpoint = open_checkpoint(source, revision=revision, allow_pickle=allow_pickle) if isinstance(source, (str, Path)) else source
    source = source if isinstance(source, (str, Path)) else checkpoint.path
    target = Path(out).expanduser().absolute()
    if checkpoint.codec == "octavo":
        raise UsageError("this is a copy in the layout of Octavo's kernels", where=str(source), remedy="convert the model that it was made of")
    _check_places(checkpoint.path, target, overwrite or dry_run)
    small = travelling(checkpoint.path, code=code)
    if dry_run:
        plan = make_plan(checkpoint, wish, {}, out_is_file=_is_file(target))
        return Report(str(source), str(out), to, rows_of(plan), notes=list(plan.notes), dry=True)
    digests: dict[str, str] = getattr(checkpoint, "digests")(cache_dir)  # noqa: B009  # every mapped checkpoint has it
    signature = {"octavo": __version__, "recipe": RECIPE, "source": digests, "wish": asdict(wish), "code": code}
    threads = threads or detect(None).cores
    with Partial(target) as partial:
        try:
            name = checkpoint.path.name if Path(source).expanduser().exists() else str(source)
            report = _write(checkpoint, partial, wish, signature, name, small, threads, on_progress, overwrite)
        except KeyboardInterrupt:
            raise  # what is done stays, for the next run
        except BaseException:
            partial.discard()
            raise
    report.source, report.out, report.seconds = str(source), str(out), time.perf_counter() - began
    return report


def _write(checkpoint: Checkpoint, partial: Partial, wish: Wish, signature: dict[str, Any], name: str, small: Sequence[Path],
           threads: int, on_progress: OnProgress | None, overwrite: bool) -> Report:
    found = partial.header()
    notes: list[str] = []
    inexact: dict[str, str] = {}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    if found is not None and found.get("signature") == _plain_json(signature):
        inexact, created = found["inexact"], found["created"]
    elif found is not None:
        notes.append("an interrupted conversion of other contents or options was there: begun anew")
    while True:
        plan = make_plan(checkpoint, wish, inexact, out_is_file=_is_file(partial.out))
        layouts = _layouts(checkpoint, plan, wish, partial.out.name)
        header = _plain_json({"signature": signature, "inexact": inexact, "created": created})
        done = partial.begin(header, layouts)
        failed = _fill_all(checkpoint, partial, plan, done, threads, on_progress)
        if not failed:
            break
        if not wish.requantize:
            weight, reason = next(iter(failed.items()))
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise RefusedError(f"{wish.to} cannot hold {weight}{more} exactly: {reason}", where=str(checkpoint.path),
                               remedy="add --requantize to round to the nearest that it holds")
        inexact = {**inexact, **failed}
    report = Report("", "", wish.to, rows_of(plan), notes=[*plan.notes, *notes], resumed=len(done))
    made = as_json(manifest(checkpoint, name, signature["source"], plan, wish.to, __version__, created))
    if isinstance(plan.writer, FileWriter):
        _publish_file(partial, layouts[0].name, made, overwrite)
        report.files = [partial.out.name, _beside(partial.out).name]
        return report
    for name, content in _small_files(checkpoint, plan, layouts, small).items():
        partial.write(name, content)
    partial.write(MANIFEST, made)
    report.files = file_names(partial.files)
    partial.publish(partial.files, overwrite=overwrite)
    return report


def _layouts(checkpoint: Checkpoint, plan: Conversion, wish: Wish, name: str) -> list[Layout]:
    if isinstance(plan.writer, FileWriter):
        # Between GGUF files tokenizer and description go over as they are.
        tokenizer = {"gguf": checkpoint.stored_metadata()} if isinstance(checkpoint, GgufCheckpoint) else checkpoint.tokenizer_files()
        return [plan.writer.layout(name, plan.parts, tokenizer)]
    return lay_out(plan.parts, wish.shard_size)


def _fill_all(checkpoint: Checkpoint, partial: Partial, plan: Conversion, done: set[str], threads: int, on_progress: OnProgress | None) -> dict[str, str]:
    """Fill every tensor that is not done, several at once. Returns those whose numbers do not fit, with the reason."""
    total, ready = sum(nbytes(part) for part in plan.parts.values()), 0
    for name, values in plan.extras.items():
        partial.arrays([name])[name][...] = values
    failed: dict[str, str] = {}
    open_items = []
    for item in plan.items:
        if item.info.name in done:
            ready += sum(map(nbytes, item.parts.values()))
        else:
            open_items.append(item)
    open_items.sort(key=lambda item: sum(map(nbytes, item.parts.values())), reverse=True)  # a large one at the end would leave the other threads idle
    running: dict[Future[None], Item] = {}
    with ThreadPoolExecutor(threads) as pool:
        try:
            queue = iter(open_items)
            for item in queue:
                running[pool.submit(_fill_one, checkpoint, partial, item)] = item
                if len(running) < threads:
                    continue
                ready += _collect(running, partial, failed, on_progress, ready, total)
            while running:
                ready += _collect(running, partial, failed, on_progress, ready, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    partial.commit()
    return failed


def _fill_one(checkpoint: Checkpoint, partial: Partial, item: Item) -> None:
    names = list(item.parts)
    fill(checkpoint, item, partial.arrays(names), lambda: partial.release(names))


def _collect(running: dict[Future[None], Item], partial: Partial, failed: dict[str, str], on_progress: OnProgress | None, ready: int, total: int) -> int:
    """Wait for a tensor, enter it into the journal; returns its bytes."""
    size = 0
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        item = running.pop(future)
        try:
            future.result()
        except InexactError as error:
            failed[item.info.name] = error.what
            continue
        partial.finished(item.info.name, list(item.parts))
        size += sum(map(nbytes, item.parts.values()))
        if on_progress is not None:
            on_progress(ready + size, total, item.info.name)
    return size


def _small_files(checkpoint: Checkpoint, plan: Conversion, layouts: Sequence[Layout], small: Sequence[Path]) -> dict[str, bytes]:
    """Everything beside the weights, by name; what the target says of itself wins over what travels along."""
    config = {**plain_config(checkpoint.config), **plan.writer.config(plan.weights, plan.kept)}
    files = copied(checkpoint.path, small) if checkpoint.path.is_dir() else made_from_metadata(checkpoint)
    made = {"config.json": config, **plan.writer.files(plan.weights, plan.kept), **index_of(layouts)}
    return files | {name: as_json(content) for name, content in made.items()}


def _publish_file(partial: Partial, name: str, made: bytes, overwrite: bool) -> None:
    out = partial.out
    partial.publish(partial.files / name, overwrite=overwrite)
    try:
        write_synced(_beside(out), made)
    except OSError as error:
        raise partial.refused(error) from None


def _is_file(out: Path) -> bool:
    """Whether the name is one of a file."""
    return out.suffix == ".gguf"


def _beside(out: Path) -> Path:
    """Where the manifest of a single file goes."""
    return out.with_name(f"{out.name}.{MANIFEST}")


def _plain_json(content: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, to be compared."""
    import json

    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def _check_places(source: Path, out: Path, overwrite: bool) -> None:
    """Raises UsageError where writing would destroy the source, or something that stands there."""
    here, there = source.resolve(), out.resolve()
    if here == there or here.is_relative_to(there):
        raise UsageError("this is, or holds, the source", where=str(out), remedy="name another place")
    if here.is_dir() and there.is_relative_to(here):
        raise UsageError("this lies in the source's folder", where=str(out), remedy="name a place outside")
    if (out.exists() or out.is_symlink()) and not overwrite:
        raise UsageError("exists", where=str(out), remedy="name another place, or give --overwrite")
    if not out.name:
        raise UsageError("is no name for a checkpoint", where=str(out))


