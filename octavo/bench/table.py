"""The table of the guides: precisions side by side, against the first of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from ..traffic import Result

NAN = math.nan


def rows(results: Sequence[Result], cost_per_hour: float | None = None) -> list[dict[str, Any]]:
    """A dictionary of plain numbers for each result, in seconds, bytes and tokens; NaN where something is not known.

    size_reduction: bytes of weights of the first over this one's. speed: tokens per second over the first's. kl, agreement: what quantizing lost, as the
    server's receipt says. cost: of a million tokens of answers at this rate, in the money of `cost_per_hour`.
    """
    return [_row(result, results[0], cost_per_hour) for result in results]


def _row(result: Result, first: Result, cost_per_hour: float | None) -> dict[str, Any]:
    s, memory = result.summary, result.server.get("memory", {})
    weights, before = result.server.get("weight_bytes", NAN), first.server.get("weight_bytes", NAN)
    kl, agreement = _loss(result.server.get("quality"))
    rate = s.tokens_per_s
    return {
        "label": result.label, "precision": result.server.get("precision", ""), "load": result.load["arrivals"], "seconds": s.seconds,
        "requests": s.requests, "errors": s.failed,
        "latency_p50": s.latency.p50, "latency_p95": s.latency.p95, "latency_p98": s.latency.p98, "latency_p99": s.latency.p99,
        "latency_corrected_p99": s.latency_corrected.p99 if s.latency_corrected is not None else NAN,
        "ttft_p50": s.ttft.p50, "ttft_p95": s.ttft.p95, "ttft_p99": s.ttft.p99, "itl_p50": s.itl.p50, "itl_p99": s.itl.p99, "tpot_p50": s.tpot.p50,
        "requests_per_s": s.requests_per_s, "tokens_per_s": rate, "chunks_per_s": s.chunks_per_s, "goodput": NAN if s.goodput is None else s.goodput,
        "good_share": NAN if s.good_share is None else s.good_share,
        "weight_bytes": weights, "size_reduction": before / weights, "memory_bytes": memory.get("peak_rss", memory.get("rss", NAN)),
        "speed": rate / first.summary.tokens_per_s if first.summary.tokens_per_s else NAN, "kl": kl, "agreement": agreement,
        "cost": cost_per_hour / (rate * 3600) * 1e6 if cost_per_hour is not None and rate else NAN,
        "cached_share": s.cached_share, "client_share": s.client_share, "late_p99": s.late_p99,
    }


def _loss(quality: Any) -> tuple[float, float]:
    """Mean KL in nats per token and the share of tokens with the same first choice; 0 and 1 of what is exact."""
    receipt = quality.get("receipt", quality) if isinstance(quality, dict) else None
    if not isinstance(receipt, dict):
        return NAN, NAN
    if receipt.get("status") == "exact":
        return 0.0, 1.0
    try:
        return float(receipt["loss"]["kl"]["mean"]), float(receipt["loss"]["top1_agreement"]["value"])
    except (KeyError, TypeError, ValueError):
        return NAN, NAN


# Title -> (key, how it is written). Columns that no row has a number for are left out.
SHOWN: dict[str, tuple[str, str]] = {
    "p50 s": ("latency_p50", ".3f"), "p95 s": ("latency_p95", ".3f"), "p98 s": ("latency_p98", ".3f"), "p99 s": ("latency_p99", ".3f"),
    "p99 corrected s": ("latency_corrected_p99", ".3f"), "first token p50 s": ("ttft_p50", ".3f"), "first token p99 s": ("ttft_p99", ".3f"),
    "ms a token": ("tpot_p50", "ms"), "requests/s": ("requests_per_s", ".2f"), "tokens/s": ("tokens_per_s", ".1f"), "in service level": ("good_share", ".0%"),
    "goodput/s": ("goodput", ".2f"), "errors": ("errors", "d"), "memory MB": ("memory_bytes", "MB"), "weights MB": ("weight_bytes", "MB"),
    "smaller": ("size_reduction", "x"), "faster": ("speed", "x"), "KL lost": ("kl", ".4f"),
    "same choice": ("agreement", ".1%"), "cost of 1M tokens": ("cost", ".3f"),
}


def shown(found: Sequence[dict[str, Any]], compared: bool = True) -> tuple[list[str], list[list[str]]]:
    """Titles, and the cells of each row as texts. `compared`: with the columns that compare with the first row."""
    chosen = {title: (key, form) for title, (key, form) in SHOWN.items()
              if any(math.isfinite(row[key]) for row in found) and (compared or key not in ("size_reduction", "speed"))}
    cells = [[row["label"], *(write(row[key], form) for key, form in chosen.values())] for row in found]
    return ["", *chosen], cells


def write(value: float, form: str) -> str:
    if not math.isfinite(value):
        return "–"
    if form == "ms":
        return f"{1e3 * value:.2f}"
    if form == "MB":
        return f"{value / 1e6:.0f}" if value >= 1e7 else f"{value / 1e6:.1f}"
    return f"{value:.2f}x" if form == "x" else format(value, form)


def markdown(found: Sequence[dict[str, Any]]) -> str:
    titles, cells = shown(found)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def csv_text(found: Sequence[dict[str, Any]]) -> str:
    """All numbers as they are; nothing where one is not known."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(found[0]), lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({key: "" if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()})
    return out.getvalue()
