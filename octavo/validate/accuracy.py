"""Accuracy on held-out text: KL divergence, perplexity, agreement. A limit is kept when the unfavourable end of the 95% interval keeps it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..quality import Comparison, Estimate, EvaluationText
from .limits import Limits
from .lines import Line

TITLES = {"kl": "Accuracy: KL divergence", "perplexity": "Accuracy: perplexity ratio", "agreement": "Accuracy: same first choice"}


def accuracy(comparison: Comparison, text: EvaluationText, limits: Limits, calibrated_on: Mapping[str, Any] | None) -> list[Line]:
    """The three lines. `calibrated_on`: the calibration of the model's receipt; the same text is no held-out one."""
    measured = (("kl", comparison.kl, limits.kl, True, "nats/token", math.nan),
                ("perplexity", comparison.perplexity_ratio, limits.perplexity_ratio, True, "x", 1.0),
                ("agreement", comparison.top1_agreement, limits.agreement, False, "share", 1.0))
    about = f"{len(comparison.rows.kl)} tokens in {len(comparison.windows.tokens)} windows of {text.name} (sha256 {text.sha256[:12]})"
    if comparison.broken:
        about += f"; at {comparison.broken} tokens the model gave no sound numbers"
    if calibrated_on and calibrated_on.get("sha256") == text.sha256:
        return [Line(name, TITLES[name], "fail", f"the model was calibrated on this very text; name another with --text. {about}", value.value, unit)
                for name, value, _, _, unit, _ in measured]
    return [_line(name, value, limit, most, unit, original, about, comparison) for name, value, limit, most, unit, original in measured]


def unmeasured(reason: str) -> list[Line]:
    return [Line(name, title, "not measured", reason) for name, title in TITLES.items()]


def _line(name: str, value: Estimate, limit: float | None, most: bool, unit: str, original: float, about: str, comparison: Comparison) -> Line:
    end = value.high if most else value.low
    sure = math.isfinite(end)
    judged = end if sure else value.value
    evidence = about
    if name == "perplexity":
        evidence = f"{comparison.perplexity.value:.4g} against the original's {comparison.original_perplexity.value:.4g}, paired; {about}"
    if sure:
        evidence = f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g} with 95%); {evidence}"
    if not sure:
        evidence += "; too little text for an interval, judged by the value itself"
    if limit is None:
        return Line(name, TITLES[name], "not measured", f"no limit is set; {evidence}", value.value, unit, "", original, value.low, value.high)
    kept = judged <= limit if most else judged >= limit  # NaN keeps nothing
    if sure and not kept and (value.value <= limit if most else value.value >= limit):
        evidence += "; the value keeps the limit, its interval does not: measure more text (--text, --windows)"
    sign, shown = "≤" if most else "≥", f"{100 * limit:g}%" if unit == "share" else f"{limit:g}"
    return Line(name, TITLES[name], "pass" if kept else "fail", evidence, value.value, unit, f"{sign} {shown}", original, value.low, value.high)
