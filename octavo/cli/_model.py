"""What the verbs that load a model share: the options that say which and how, and loading it with a progress bar."""

# No `from __future__ import annotations` here: cyclopts would look the types of inherited fields up in the module of the heir.
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..loading import LoadedModel, Progress


@dataclass
class ModelName:
    """The first argument; verbs with further arguments inherit from it, so that those come next."""

    model: str
    """A Hugging Face folder, a .gguf file, or a hub id."""


@dataclass
class ModelOptions(ModelName):
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


def load_model(options: ModelOptions, check: Callable[[], None] = lambda: None) -> "LoadedModel":
    """Load as the options say. On standard error: what it will take, before the first weight is read, and a progress bar.

    `check` is called before each tensor and may raise to end the load.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from ..loading import load

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=None, visible=False)

    def progress(now: "Progress") -> None:
        check()
        if now.done == 0 and not bar.tasks[task].visible:
            parts = " + ".join(f"{name} {size / 1e6:.0f}" for name, size in now.report.predicted.items())
            console.print(f"loading {now.report.source}: predicted peak {now.report.predicted_peak / 1e6:.0f} MB = {parts}", markup=False)
        bar.update(task, completed=now.done, total=now.total, visible=True,
                   description="mapping what was kept" if now.report.cache_hit else "quantizing")

    with bar:
        return load(
            options.model, quantization=options.quantization, kv_cache=options.kv_cache, backend=options.backend, threads=options.threads,
            isa=options.isa, cache_dir=options.cache_dir, use_cache=options.cache, max_model_len=options.max_model_len, on_progress=progress,
        )
