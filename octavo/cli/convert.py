"""`octavo convert SRC OUT --to FORMAT`: a checkpoint of any format that is read into any that is written."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ._command import Command

if TYPE_CHECKING:
    from ..conversion import Report
    from ..quality.receipt import Receipt

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
LEAST_SHARD = 1 << 16


@dataclass
class Options:
    source: str
    """A model folder, a .gguf file, or a hub id (owner/name)."""

    out: Path
    """The folder to write; for gguf, the file."""

    _: KW_ONLY

    to: str = ""
    """compressed-tensors, gptq, awq, bitsandbytes, fp8, mxfp4, nvfp4, modelopt, gguf:TYPE (such as gguf:Q4_0), or safetensors (unquantized)."""

    quantization: str | None = None
    """Precision that unquantized weights are rounded to, such as W4g64A16; default: the format's natural one."""

    requantize: bool = False
    """Round what is quantized already, where the format cannot hold its numbers."""

    keep: list[str] = field(default_factory=list)
    """Leave weights unquantized whose name matches (a glob; may be repeated)."""

    include: list[str] = field(default_factory=list)
    """Quantize weights that convention leaves in 16 bits, such as lm_head.weight (a glob; may be repeated)."""

    dtype: str = ""
    """bf16, fp16 or fp32 for what stays unquantized; default: as stored, and fp32, which is exact, for what was quantized."""

    shard_size: str = "5GB"
    """Most bytes of one file."""

    overwrite: bool = False
    """Replace what stands at OUT."""

    dry_run: bool = False
    """Say what would be written, and write nothing."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt), by torch's weights_only loader, where there are no others."""

    code: bool = False
    """Let the folder's *.py files travel along; nothing here runs them."""

    threads: int | None = None
    """Tensors worked on at once; default: as many as this process may use cores."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    cache_dir: Path | None = None
    """Where digests of files are remembered; default: OCTAVO_CACHE, or ~/.cache/octavo."""

    receipt: bool = True
    """Write octavo-receipt.json: what the model has lost where numbers changed, measured on a few hundred tokens."""

    receipt_text: str | None = None
    """Measure on this text instead of one of Octavo's own; as `octavo evaluate --text`."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """Write a checkpoint in another format: exactly where that can hold the same numbers, else not without --requantize.

    Run again after an interruption, it goes on where it stopped.
    """
    if not options.to:
        raise UsageError("no format to convert to", where="--to", remedy="such as --to gptq; `octavo convert --help` lists them")

    from ..conversion import convert

    bar = _Bar() if sys.stderr.isatty() and not options.dry_run else None
    try:
        report = convert(
            options.source, options.out, to=options.to, quantization=options.quantization, requantize=options.requantize, keep=options.keep,
            include=options.include, dtype=options.dtype, shard_size=_bytes(options.shard_size), overwrite=options.overwrite, dry_run=options.dry_run,
            code=options.code, threads=options.threads, cache_dir=options.cache_dir, revision=options.revision, allow_pickle=options.allow_pickle,
            on_progress=None if bar is None else bar.update,
        )
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise
    finally:
        if bar is not None:
            bar.stop()
    receipt = _receipt(options, report) if options.receipt and not options.dry_run else None
    if options.json:
        print(json.dumps(report.to_json() | ({"receipt": receipt.to_json()} if receipt is not None else {}), indent=2))
    else:
        _show(report)
        if receipt is not None:
            print(f"receipt: {receipt.line}")


def _receipt(options: Options, report: Report) -> Receipt:
    from ..quality.receipt_of import receipt_of
    from ..quality.texts import read_text

    settings = {"verb": "convert", "to": options.to, "quantization": options.quantization, "requantize": options.requantize, "keep": options.keep,
                "include": options.include, "dtype": options.dtype}
    return receipt_of(options.source, options.out, exact=all(row.exact for row in report.rows), settings=settings, threads=options.threads,
                      text=read_text(options.receipt_text or "receipt"),
                      cache_dir=options.cache_dir, revision=options.revision, allow_pickle=options.allow_pickle)


def _bytes(text: str) -> int:
    """5GB, 500 MB, 1000000."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < LEAST_SHARD:
        raise UsageError(f"cannot read the size {text!r}, or it is below {LEAST_SHARD} bytes", where="--shard-size", remedy="such as 5GB or 500MB")
    return size


def _show(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=None, box=None, padding=(0, 2, 0, 0))
    for name, side in (("stored", "left"), ("written", "left"), ("tensors", "right"), ("MB before", "right"), ("MB after", "right"),
                       ("bits each", "right"), ("numbers", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for row in report.rows:
        fate = "exact" if row.exact else row.rounded if row.rounded.startswith("quantized") else f"rounded: {row.rounded}"
        table.add_row(escape(row.stored), escape(row.written), str(row.tensors), f"{row.bytes_before / 1e6:.2f}", f"{row.bytes_after / 1e6:.2f}",
                      f"{row.bits:.2f}", escape(fate))
    console.print(table)
    for note in report.notes:
        print(f"note: {note}")
    if report.resumed:
        print(f"{report.resumed} tensors were there from an interrupted run")
    done = f"would write {report.out}" if report.dry else f"wrote {report.out} in {report.seconds:.1f} s"
    print(f"{done}: {report.target}, {report.bytes_before / 1e6:.1f} MB -> {report.bytes_after / 1e6:.1f} MB, {report.bits_per_weight:.2f} bits per weight")


class _Bar:
    """Bytes that are written, on the terminal's last line until `stop`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("converting", total=None)
        self._bar.start()

    def update(self, done: int, total: int, name: str) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        self._bar.stop()


COMMAND = Command("convert", Options, run)
