"""Layers: which of them lose, by putting each, alone, into the original."""

from __future__ import annotations

import re
from typing import Literal

from ....errors import UsageError
from ....quality.parts import kl_by_part
from ....schemes import parse_tensor
from ...case import LARGE_LOSS, PART_WINDOWS, SMALL_LOSS, Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

SHARE = 0.5      # of all parts' losses: one part that causes this much is the cause
TIMES = 3.0      # its median neighbour
CONCENTRATED = Disorder("lossy_layers", "error", "the loss comes from few weights, the rest is sound",
                        "give those weights more bits, or leave them unquantized")
EVEN_LOSS = Disorder("too_few_bits", "warning", "the loss is spread over all layers: it is the precision that costs it",
                     "more bits, smaller groups, or a calibrated method instead of rounding to nearest")
BY: tuple[Literal["layer", "kind"], ...] = ("layer", "kind")
LADDER = ("4g32", "8g64")  # what is tried instead; 5 and 6 bits take as much memory as 8


def look(case: Case) -> Answer:
    if case.comparison.kl.value - case.input_loss < SMALL_LOSS:
        raise NotAskedError("the loss comes from inputs, not from weights")
    try:
        windows = case.first_windows(PART_WINDOWS)
        layers, kinds = (kl_by_part(case.original, case.loaded, windows, by=by) for by in BY)
    except UsageError as error:  # rotated weights, other tensors: no part of one fits into the other
        raise NotAskedError(error.what) from None
    for losses in (layers, kinds):
        values = sorted((max(loss.kl.value, 0.0) for loss in losses), reverse=True)
        whole, typical = sum(values), values[len(values) // 2]
        if len(values) > 2 and whole > SMALL_LOSS / 2 and values[0] > SHARE * whole and values[0] > TIMES * max(typical, 1e-6):
            worst = max(losses, key=lambda loss: loss.kl.value).part
            evidence = f"{worst} alone: KL {values[0]:.4g} nats per token, {values[0] / whole:.0%} of what all parts lose; the median part {typical:.2g}"
            scheme = f"{case.loaded.plan.default}; {_pattern(worst)}=keep"
            return Answer(f"{worst}: {values[0]:.4g} of {whole:.4g}", (CONCENTRATED(worst, evidence, case.quantize(scheme, *_method(case))),))
    first = ", ".join(f"{loss.part} {loss.kl.value:.2g}" for loss in sorted(layers, key=lambda loss: -loss.kl.value)[:3])
    kl = case.comparison.kl.value
    if kl <= SMALL_LOSS:
        return Answer(f"all a little; most: {first}")
    tried, command = _more(case, kl)
    return Answer(f"all a little; most: {first}", (EVEN_LOSS("", f"KL {kl:.4g}; the worst parts alone: {first}{tried}", command),))


def _more(case: Case, kl: float) -> tuple[str, str]:
    """What the steps of the ladder lose, measured, and the command for the first that loses little: at most half of LARGE_LOSS and of what is lost now."""
    now, plan = case.loaded.plan.default, str(case.loaded.plan)
    told = ""
    for step in LADDER:
        weight = parse_tensor(step, "weight")
        if weight == now.weight or weight.bits < now.weight.bits:
            continue
        inputs = re.sub(r"g\d+", step[step.index("g"):], str(now)[str(now).index("A"):])  # groups of theirs follow the weights'
        scheme = plan.replace(str(now), f"W{step}{inputs}", 1)  # weights with a precision of their own keep it
        loss = case.loss_in(scheme)
        told += f"; W{step}{inputs} {loss:.4g}"
        if loss <= min(LARGE_LOSS, kl) / 2:
            return told, case.command(model=case.complaint.against, quantization=scheme)
    return told, ""


def _pattern(part: str) -> str:
    """A glob for a part: "layer 7", a kind of weight, or a tensor's own name."""
    return f"*.layers.{part.removeprefix('layer ')}.*" if part.startswith("layer ") else part if "." in part else f"*{part}*"


def _method(case: Case) -> tuple[str, ...]:
    return ("--method", "gptq", "--data", str(case.complaint.data)) if case.complaint.data else ("--method", "rtn")


CAUSE = Cause(50, "which layers lose?", look, (CONCENTRATED, EVEN_LOSS), unless=("no_numbers", "loss_is_small", "tokenizer_differs"))
