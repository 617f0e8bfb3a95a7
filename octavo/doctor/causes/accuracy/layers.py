"""Layers: which of them lose, by putting each, alone, into the original."""

from __future__ import annotations

from ....quality.parts import PartLoss, kl_by_part
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause

SHARE = 0.5      # of all parts' losses: one part that causes this much is the cause
TIMES = 3.0      # its median neighbour
EVEN = 0.02      # nats per token: an even loss below this is what the precision costs
CONCENTRATED = Disorder("lossy_layers", "error", "the loss comes from few weights, the rest is sound", "give those weights more bits, or leave them unquantized")
EVEN_LOSS = Disorder("too_few_bits", "warning", "the loss is spread over all layers: it is the precision that costs it",
                     "more bits, smaller groups, or a calibrated method instead of rounding to nearest")
OUTER = ("model.embed_tokens.weight", "lm_head.weight")


def look(case: Case) -> Answer:
    original, loaded = case.original, case.loaded
    kinds: dict[str, list[PartLoss]] = {"layer": kl_by_part(original, loaded, case.windows), "kind": kl_by_part(original, loaded, case.windows, by="kind")}
    for by, losses in kinds.items():
        parts = sorted(losses, key=lambda loss: -loss.kl.value)
        values = [max(loss.kl.value, 0.0) for loss in parts]
        typical = sorted(values)[len(values) // 2]
        if len(parts) > 2 and sum(values) > EVEN / 2 and values[0] > SHARE * sum(values) and values[0] > TIMES * max(typical, 1e-6):
            worst = parts[0].part
            evidence = f"{worst} alone: KL {values[0]:.4g} nats per token, {values[0] / sum(values):.0%} of what all parts lose; the median part {typical:.2g}"
            pattern = f"*.layers.{worst.removeprefix('layer ')}.*" if worst.startswith("layer ") else f"*{worst}*" if by == "kind" else worst
            scheme = f"{loaded.plan.default}; {pattern}=keep"
            return Answer(f"{worst}: {values[0]:.4g} of {sum(values):.4g}", (CONCENTRATED(worst, evidence, case.quantize(scheme)),))
    worst_three = ", ".join(f"{loss.part} {loss.kl.value:.2g}" for loss in sorted(kinds["layer"], key=lambda loss: -loss.kl.value)[:3])
    even = case.comparison.kl.value > EVEN
    more = case.quantize(_wider(str(loaded.plan.default.weight.bits)), "--method", "gptq", "--data", str(case.complaint.data or "calibration.jsonl"))
    return Answer(f"all a little; most: {worst_three}",
                  (EVEN_LOSS("", f"KL {case.comparison.kl.value:.4g}; the worst parts alone: {worst_three}", more),) if even else ())


def _wider(bits: str) -> str:
    """The next precision up that is worth trying."""
    return {"2": "W3g32A16", "3": "W4g32A16", "4": "W5g32A16"}.get(bits, "W8A16")


CAUSE = Cause(50, "which layers lose?", look, (CONCENTRATED, EVEN_LOSS), unless=("no_numbers", "loss_is_small", "tokenizer_differs"))
