"""Layers: which of them lose, by putting each, alone, into the original."""

from __future__ import annotations

from typing import Literal

from ....errors import UsageError
from ....quality.parts import kl_by_part
from ...case import Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

SHARE = 0.5      # of all parts' losses: one part that causes this much is the cause
TIMES = 3.0      # its median neighbour
EVEN = 0.02      # nats per token: an even loss below this is what the precision costs
CONCENTRATED = Disorder("lossy_layers", "error", "the loss comes from few weights, the rest is sound",
                        "give those weights more bits, or leave them unquantized")
EVEN_LOSS = Disorder("too_few_bits", "warning", "the loss is spread over all layers: it is the precision that costs it",
                     "more bits, smaller groups, or a calibrated method instead of rounding to nearest")
BY: tuple[Literal["layer", "kind"], ...] = ("layer", "kind")
WIDER = {2: "W3g32A16", 3: "W4g32A16", 4: "W5g32A16"}  # bits -> the next precision that is worth trying


def look(case: Case) -> Answer:
    try:
        layers, kinds = (kl_by_part(case.original, case.loaded, case.windows, by=by) for by in BY)
    except UsageError as error:  # rotated weights, other tensors: no part of one fits into the other
        raise NotAskedError(error.what) from None
    for losses in (layers, kinds):
        values = sorted((max(loss.kl.value, 0.0) for loss in losses), reverse=True)
        whole, typical = sum(values), values[len(values) // 2]
        if len(values) > 2 and whole > EVEN / 2 and values[0] > SHARE * whole and values[0] > TIMES * max(typical, 1e-6):
            worst = max(losses, key=lambda loss: loss.kl.value).part
            evidence = f"{worst} alone: KL {values[0]:.4g} nats per token, {values[0] / whole:.0%} of what all parts lose; the median part {typical:.2g}"
            scheme = f"{case.loaded.plan.default}; {_pattern(worst)}=keep"
            return Answer(f"{worst}: {values[0]:.4g} of {whole:.4g}", (CONCENTRATED(worst, evidence, case.quantize(scheme, *_method(case))),))
    first = ", ".join(f"{loss.part} {loss.kl.value:.2g}" for loss in sorted(layers, key=lambda loss: -loss.kl.value)[:3])
    kl = case.comparison.kl.value
    if kl <= EVEN:
        return Answer(f"all a little; most: {first}")
    more = case.quantize(WIDER.get(case.loaded.plan.default.weight.bits, "W8A16"), *_method(case))
    return Answer(f"all a little; most: {first}", (EVEN_LOSS("", f"KL {kl:.4g}; the worst parts alone: {first}", more),))


def _pattern(part: str) -> str:
    """A glob for a part: "layer 7", a kind of weight, or a tensor's own name."""
    return f"*.layers.{part.removeprefix('layer ')}.*" if part.startswith("layer ") else part if "." in part else f"*{part}*"


def _method(case: Case) -> tuple[str, ...]:
    return ("--method", "gptq", "--data", str(case.complaint.data)) if case.complaint.data else ("--method", "rtn")


CAUSE = Cause(50, "which layers lose?", look, (CONCENTRATED, EVEN_LOSS), unless=("no_numbers", "loss_is_small", "tokenizer_differs"))
