"""What `serve` and `chat` share: the options that say which model to load and how, and loading it with a progress bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loading import LoadedModel


@dataclass
class ModelOptions:
    model: str
    """A Hugging Face folder, a .gguf file, or a hub id."""

    _: KW_ONLY

    quantization: str | None = None
    """A preset (32bit, 16bit, 8bit, 4bit) or a scheme, such as W4g64A8; default: what the model is stored in."""

    kv_cache: str | None = None
    """Precision of the key-value cache: bf16, int8."""

    backend: str = "native"
    """What computes: native, or reference (slow, exact)."""

    threads: int | None = None
    """Threads of the kernels; default: OCTAVO_THREADS, or as many as there are cores."""

    isa: str | None = None
    """Instruction set: portable, avx2, avx512vnni; default: OCTAVO_ISA, or the best there is."""

    max_model_len: int | None = None
    """Longest prompt and answer together, in tokens; default: what the model was made for."""

    cache: bool = True
    """Keep what was quantized, and load it from there the next time."""

    cache_dir: Path | None = None
    """Where it is kept; default: OCTAVO_CACHE, or ~/.cache/octavo."""


def load_model(options: ModelOptions, check: Callable[[], None] = lambda: None) -> LoadedModel:
    """Load as the options say, with a progress bar on standard error. `check` is called now and then and may raise to end it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..loading import load
    from ..settings import read_settings

    settings = read_settings()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True,
    )
    task = bar.add_task("loading", total=None)

    def progress(done: int, total: int, what: str) -> None:
        check()
        bar.update(task, completed=done, total=total, description=what)

    with bar:
        return load(
            options.model, quantization=options.quantization, kv_cache=options.kv_cache, backend=options.backend,
            threads=options.threads if options.threads is not None else settings.threads, isa=options.isa or settings.isa,
            cache_dir=options.cache_dir or settings.cache_dir, use_cache=options.cache, max_model_len=options.max_model_len, on_progress=progress,
        )
