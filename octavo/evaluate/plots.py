"""Plots of an evaluation, with matplotlib (the extra octavo[plots]), as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, UsageError
from .measure import Evaluation


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """kl-by-position.png, kl-of-tokens.png and, where it was measured, kl-by-layer.png. Raises UsageError where nothing was compared or the folder
    cannot be written, MissingExtraError without matplotlib."""
    comparison = evaluation.comparison
    if comparison is None:
        raise UsageError("there is nothing to plot without an original", where="--plots", remedy="name it with --against")
    figures = {"kl-by-position.png": _by_position(evaluation), "kl-of-tokens.png": _of_tokens(evaluation)}
    if evaluation.evidence.parts:
        figures["kl-by-layer.png"] = _by_layer(evaluation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=120)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    return [folder / name for name in figures]


def _by_position(evaluation: Evaluation) -> Any:
    assert evaluation.comparison is not None
    parts = evaluation.comparison.kl_by_position()
    middle = np.array([(start + stop) / 2 for start, stop, _ in parts])
    value, low, high = (np.array([getattr(kl, name) for _, _, kl in parts]) for name in ("value", "low", "high"))
    figure, axes = _axes(evaluation, "tokens before", "mean KL (nats per token)")
    axes.plot(middle, value)
    axes.fill_between(middle, low, high, alpha=0.25, label="95% interval")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _of_tokens(evaluation: Evaluation) -> Any:
    assert evaluation.comparison is not None
    kl = np.sort(evaluation.comparison.rows.kl)
    figure, axes = _axes(evaluation, "KL of a token (nats)", "share of tokens above")
    axes.loglog(np.maximum(kl, 1e-9), 1 - np.arange(len(kl)) / len(kl))
    return figure


def _by_layer(evaluation: Evaluation) -> Any:
    parts = evaluation.evidence.parts
    value = np.array([part.kl.value for part in parts])
    spread = np.array([[part.kl.value - part.kl.low, part.kl.high - part.kl.value] for part in parts]).T
    figure, axes = _axes(evaluation, "", "mean KL with only this part from the model (nats per token)")
    axes.bar(np.arange(len(parts)), value, yerr=np.maximum(np.nan_to_num(spread), 0.0))
    axes.set_xticks(np.arange(len(parts)), [part.part.removeprefix("layer ") for part in parts], rotation=90, fontsize=7)
    figure.tight_layout()
    return figure


def _axes(evaluation: Evaluation, x: str, y: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a backend for a screen
    except ImportError:
        raise MissingExtraError("plots need matplotlib", where="--plots", remedy="pip install 'octavo[plots]'") from None
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, title=f"{evaluation.model['model']} as {evaluation.model['plan']}, {evaluation.text['name']}")
    axes.grid(alpha=0.3)
    return figure, axes
