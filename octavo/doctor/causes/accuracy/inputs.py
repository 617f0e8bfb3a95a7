"""Inputs: a few channels of activations are many times larger than the others, and one scale for all of them leaves the others no digits."""

from __future__ import annotations

import numpy as np

from ....errors import OctavoError
from ....quality import compare
from ...case import SMALL_LOSS, Case, wide
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

SHARE = 0.3                 # of the loss that comes from inputs
TOKENS, ROWS = 128, 2       # of the original whose channels are looked at
OUTLIERS = Disorder("activation_outliers", "error", "inputs of the linears have outliers, and one scale for a whole token leaves the other channels few digits",
                    "keep inputs in 16 bits (A16), or move the outliers into the weights before (smoothquant)")


def look(case: Case) -> Answer:
    plan = case.loaded.plan.default
    if not plan.activation.quantized or case.loaded.backend.name != "native":
        raise NotAskedError("inputs are not quantized")
    if case.complaint.against is None:  # against itself with 16-bit inputs: what the inputs alone cost
        alone = whole = compare(wide(case.exact_inputs), wide(case.loaded), case.windows).kl.value
    else:
        whole = case.comparison.kl.value
        alone = whole - compare(case.original, case.exact_inputs, case.windows).kl.value
    case.input_loss = alone
    line = f"with 16-bit inputs the loss is {alone:.4g} nats per token less"
    if alone < SMALL_LOSS / 2 or alone < SHARE * whole:
        return Answer(line)
    scheme = str(plan).replace(f"A{_activation(str(plan))}", "A16")
    evidence = f"{line}, {min(alone / whole, 1):.0%} of all{_channels(case)}"
    return Answer(line, (OUTLIERS(f"inputs as A{_activation(str(plan))}", evidence, case.command(quantization=scheme)),))


def _activation(name: str) -> str:
    """The part of a canonical name between A and C."""
    return name.partition("A")[2].partition("C")[0]


def _channels(case: Case) -> str:
    """The largest channel of a linear's inputs against the median one, in the original, where that can be computed here."""
    from ....calibration.blocks import Blocks, Weights
    from ....calibration.group import Group
    from ....checkpoints import open_checkpoint
    from ....loading import open_model

    worst: list[tuple[float, str]] = []

    def visit(group: Group) -> None:
        largest = group.statistics(gram=False, counted=False).largest
        worst.append((float(largest.max() / max(float(np.median(largest)), 1e-9)), group.names[0]))

    try:
        checkpoint, model, found, *_ = open_model(open_checkpoint(case.complaint.against or case.model))
        with Blocks(model, Weights(checkpoint, found), case.windows.tokens[:ROWS, :TOKENS], 1) as blocks:
            for block in blocks:
                block.run(visit)
                block.finish()
    except OctavoError:
        return ""
    ratio, name = max(worst, default=(1.0, ""))
    return f"; in the inputs of {name} the largest channel is {ratio:.0f} times the median one"


CAUSE = Cause(45, "do inputs have outliers that one scale per token cannot hold?", look, (OUTLIERS,),
              unless=("no_numbers", "loss_is_small", "tokenizer_differs"))
