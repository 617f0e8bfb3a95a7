"""Whole forwards of a small random model on this device: against the reference backend, and captured steps against the same steps launched one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.cache import PAGE, Step
from octavo.loading import LoadedModel, load

from .random_model import TINY, TOY, in_place_of_files

if TYPE_CHECKING:
    from .check_ops import Findings

LOGITS = {"32bit": 1e-4, "16bit": 4e-2}  # largest error over the largest logit
PAGES = {False: 16, True: 4}             # of a sequence
SEQUENCES = {False: [(20, 0), (300, 0), (1, 0)], True: [(3, 0), (1, 0)]}  # one longer than a run of attention's splits


def step_of(parts: list[tuple[int, int]], most: int, first: int = 0) -> Step:
    """parts: (new tokens, tokens in the cache already) of each sequence, whose `most` pages lie backwards, those of the first from page `first` on."""
    tables = np.arange(first, first + len(parts) * most, dtype=np.int32).reshape(len(parts), most)[:, ::-1].copy()
    positions = [np.arange(past, past + new, dtype=np.int32) for new, past in parts]
    slots = [tables[at][p // PAGE] * PAGE + p % PAGE for at, p in enumerate(positions)]
    starts = np.cumsum([0, *(new for new, _ in parts)]).astype(np.int32)
    tokens = np.random.default_rng(sum(past for _, past in parts)).integers(2, 50, int(starts[-1])).astype(np.int32)
    return Step(tokens, np.concatenate(positions), np.concatenate(slots).astype(np.int32), starts, np.array([new + past for new, past in parts], np.int32),
                tables, (starts[1:] - 1).astype(np.int32))


def toy(quantization: str, tiny: bool, backend: str = "triton") -> LoadedModel:
    with in_place_of_files(TINY if tiny else TOY):
        return load("toy", quantization=quantization, backend=backend, use_cache=False, max_model_len=640)


def forward(found: Findings, quantization: str, tiny: bool) -> None:
    """Prompts and decoded tokens of three sequences against the reference backend in float64."""
    sequences, most = SEQUENCES[tiny], PAGES[tiny]
    models = [toy(quantization, tiny, backend) for backend in ("triton", "reference")]
    pools = [model.new_pool(most * len(sequences)) for model in models]
    for name, parts in (("prompts", sequences), ("decoding", [(1, new) for new, _ in sequences])):
        ours, theirs = (np.array(model.forward(step_of(parts, most), pool)) for model, pool in zip(models, pools, strict=True))
        found.close(name, torch.from_numpy(ours), torch.from_numpy(theirs), LOGITS[quantization])


def graphs(found: Findings, quantization: str, tiny: bool) -> None:
    """A decoding step launched, captured and replayed gives the same bits; alone and in company too; a run ahead gives the tokens of single steps."""
    sequences, most = SEQUENCES[tiny], PAGES[tiny]
    model = toy(quantization, tiny)
    pool: Any = model.new_pool(most * len(sequences))
    model.forward(step_of(sequences, most), pool)
    step = step_of([(1, new) for new, _ in sequences], most)
    launched, captured, replayed = (np.array(model.forward(step, pool)) for _ in range(3))
    found.expect(bool(np.isfinite(launched).all()), "logits are no numbers")
    found.expect(np.array_equal(captured, replayed), "a captured step gives other bits when it runs again")
    found.expect(np.array_equal(launched, captured), f"a captured step has other bits than the same step launched: {np.abs(launched - captured).max():.1e}")
    for at in range(len(sequences)):
        one = Step(step.tokens[at : at + 1], step.positions[at : at + 1], step.slots[at : at + 1], np.array([0, 1], np.int32), step.lengths[at : at + 1],
                   step.tables[at : at + 1].copy(), np.zeros(1, np.int32))
        alone = np.array(model.forward(one, pool))
        found.expect(np.array_equal(alone[0], launched[at]), f"sequence {at} alone has other bits: {np.abs(alone[0] - launched[at]).max():.1e}")
    tokens = []
    single = step_of([(1, new) for new, _ in sequences], most)
    for _ in range(4):
        best, _ = model.best(model.forward(single, pool))
        tokens.append(best.copy())
        single.tokens = best.astype(np.int32)
        single.positions, single.lengths = single.positions + np.int32(1), single.lengths + np.int32(1)
        single.slots = (single.tables[np.arange(len(best)), single.positions // PAGE] * PAGE + single.positions % PAGE).astype(np.int32)
    ahead = model.ahead(step, pool, 4)
    if found_ahead := ahead is not None:
        assert ahead is not None
        found.expect(np.array_equal([chosen.copy() for chosen, _ in ahead], np.stack(tokens)), "a run ahead chooses other tokens than single steps")
    found.expect(found_ahead or not torch.cuda.is_available(), "decoding steps were not captured")
