"""Loss: how far the model's answers lie from its original's, token by token; without the original, what its receipt says."""

from __future__ import annotations

import math

from ....checkpoints import open_checkpoint
from ....quality.earlier import earlier_loss
from ...case import LARGE_LOSS, SMALL_LOSS, Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

BROKEN = Disorder("no_numbers", "error", "the model's output is no number at some tokens: everything after them is noise",
                  "examine the files; where they are sound, use 16-bit inputs (A16)")
SMALL = Disorder("loss_is_small", "info", "quantizing has cost next to nothing: what users see has another cause",
                 "look at the chat template, sampling (temperature), the length of prompts, and the original's own answers")
LARGE = Disorder("loss_is_large", "error", "the model gives other answers than its original", "the findings beside this one say where it is lost")


def look(case: Case) -> Answer:
    if case.complaint.against is None:
        receipt = earlier_loss(open_checkpoint(case.model), case.complaint.cache_dir)
        if receipt.status != "measured":
            raise NotAskedError("there is no receipt of what was lost: name the original with --against" if receipt.status == "exact" else receipt.reason)
        case.facts["kl"], kl, line, broken = receipt.kl, receipt.kl, f"by its receipt: {receipt.line}", int(receipt.loss.get("broken_tokens") or 0)
    else:
        found = case.comparison
        kl, broken = found.kl.value, found.broken
        line = (f"KL {kl:.4g} nats per token, the same first choice at {100 * found.top1_agreement.value:.1f}%, perplexity {found.perplexity.value:.4g} "
                f"against {found.original_perplexity.value:.4g}; {len(found.rows.kl)} tokens of {case.text.name}")
    if broken or not math.isfinite(kl):
        return Answer(line, (BROKEN("", f"{broken} tokens"),))
    return Answer(line, (SMALL("", line),) if kl < SMALL_LOSS else (LARGE("", line),) if kl > LARGE_LOSS else ())


CAUSE = Cause(40, "how much has it lost?", look, (BROKEN, LARGE, SMALL), unless=("tokenizer_differs", "token_beyond_vocabulary"))
