"""What the verbs that load a model share: the options that say which and how, and loading it with a progress bar."""

# No `from __future__ import annotations` here: cyclopts would look the types of inherited fields up in the module of the heir.
import sys
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
    """Precision of the key-value cache: bf16, int8, fp8, int4, K8V4 (keys and values apart), or auto: by each layer's sensitivity."""

    max_kl: float | None = None
    """With --kv-cache auto: the loss allowed, as mean KL divergence from a 16-bit cache in nats per token (default 0.005)."""

    backend: str = "native"
    """What computes: native, reference (slow, exact), or triton (a GPU, as --device cuda chooses it)."""

    device: str = "auto"
    """Where: cpu, cuda, or auto: on an NVIDIA GPU where there is one that the kernels run on (Ampere and newer) and octavo[gpu] is installed."""

    threads: int | None = None
    """Threads of the kernels; default and at most: as many as this process may use cores (or OCTAVO_THREADS)."""

    isa: str | None = None
    """Instruction set: portable, avx2, avx512vnni, avx512bf16, amx; default: OCTAVO_ISA, or the best there is."""

    max_model_len: int | None = None
    """Longest prompt and answer together, in tokens; default: what the model was made for."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt), by torch's weights_only loader, where there are no others."""

    cache: bool = True
    """Keep what was quantized, and load it from there the next time."""

    cache_dir: Path | None = None
    """Where it is kept; default: OCTAVO_CACHE, or ~/.cache/octavo."""


def load_model(options: ModelOptions, check: Callable[[], None] = lambda: None) -> "LoadedModel":
    """Load as the options say. On standard error: what it will take, before the first weight is read, and a progress bar.

    `check` is called before each tensor and may raise to end the load.
    """
    from ..loading import load

    shown: list[_Bar | None] = []

    def progress(now: "Progress") -> None:
        check()
        if not shown:
            parts = " + ".join(f"{name} {size / 1e6:.0f}" for name, size in now.report.predicted.items())
            print(f"loading {now.report.source}: predicted peak {now.report.predicted_peak / 1e6:.0f} MB = {parts}", file=sys.stderr)
            # Mapping what was kept takes less time than importing a progress bar.
            shown.append(_Bar() if sys.stderr.isatty() and not now.report.cache_hit else None)
        if (bar := shown[0]) is not None:
            bar.update(now.done, now.total)

    try:
        return load(
            options.model, quantization=options.quantization, kv_cache=options.kv_cache, max_kl=options.max_kl, backend=options.backend,
            device=options.device, threads=options.threads,
            isa=options.isa, cache_dir=options.cache_dir, use_cache=options.cache, max_model_len=options.max_model_len, allow_pickle=options.allow_pickle,
            on_progress=progress,
        )
    finally:
        for bar in shown:
            if bar is not None:
                bar.stop()


def loss_line(options: ModelOptions, loaded: "LoadedModel", measure: bool) -> str:
    """What the precision that was asked for has lost, where an earlier start has measured it or `measure` says to; "" where none was asked for."""
    if options.quantization is None and options.kv_cache is None:
        return ""
    from ..quality.online import Online

    online = Online(loaded, options.model, True, None, options.cache_dir, options.allow_pickle)
    receipt = online.kept() or (online.measure() if measure else None)
    if receipt is not None:
        return f"quality: {receipt.line}"
    return "quality: what this precision has lost was not measured; --receipt does it, `octavo serve`, or `octavo evaluate --against` the original"


class _Bar:
    """Bytes of weights that are ready, on the terminal's last line until `stop`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("quantizing", total=None)
        self._bar.start()

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        self._bar.stop()
