"""Calibration: text unlike what users ask. Distances between distributions of tokens, held against what two halves of the traffic differ by.

The distance is Jensen and Shannon's divergence (Lin, 1991), in bits: 0 for the same, 1 for no token in common. Few tokens make it large by themselves,
so equally many tokens of the traffic are compared with as many others of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....errors import UsageError
from ....quality import compare, read_text, windows_of
from ....text.documents import documents
from ...case import CONTEXT, SMALL_LOSS, WINDOWS, Case
from ...findings import Disorder
from ...tree import Answer, Cause, NotAskedError

# Bits beyond the distance between halves of the traffic. With SmolLM2's tokenizer, two parts of one source: at most 0.04; chat questions against a mixed text
# with chat in it 0.09, against WikiText 0.21; arithmetic against stories 0.28; SQL against any prose 0.8.
EXCESS = 0.15
MOST = 50_000  # tokens counted of either
UNLIKE = Disorder("calibration_unlike_traffic", "warning", "the text that the model was calibrated on is unlike what it is asked",
                  "calibrate on a sample of the traffic, kept apart from what quality is measured on")


def look(case: Case) -> Answer:
    if case.complaint.data is None or case.complaint.traffic is None:
        raise NotAskedError("name the calibration text with --data and what users ask with --traffic")
    data, traffic = (_tokens(case, path) for path in (case.complaint.data, case.complaint.traffic))
    if len(traffic) < 2:
        raise NotAskedError("the traffic has fewer than two texts")
    size = case.loaded.vocab_size
    halves = [_counts(traffic[start::2], size) for start in (0, 1)]
    least = min(*(int(half.sum()) for half in halves), sum(map(len, data)))
    calibration = _counts(data, size)
    own = _distance(*(_sample(half, least, seed) for seed, half in enumerate(halves)))
    far = float(np.mean([_distance(_sample(calibration, least, 2 + seed), _sample(half, least, seed)) for seed, half in enumerate(halves)]))
    everything = halves[0] + halves[1]
    unseen = float(everything[calibration == 0].sum() / everything.sum())
    line = f"distance {far:.3f} bits ({own:.3f} between halves of the traffic); {unseen:.1%} of the traffic's tokens never occur in calibration"
    if far < own + EXCESS:
        return Answer(f"yes: {line}")
    if case.complaint.against is not None and case.comparison.kl.value < SMALL_LOSS:
        return Answer(f"no, but that cost little: {line}; KL {case.comparison.kl.value:.4g} on the traffic")
    command = case.quantize(str(case.loaded.plan.default), "--method", "gptq", "--data", str(case.complaint.traffic))
    return Answer(f"no: {line}", (UNLIKE(str(case.complaint.data), line + _losses(case), command),))


def _tokens(case: Case, path: Path) -> list[np.ndarray]:
    try:
        texts = documents(path) if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror or error}", where=str(path), remedy="name a .txt or .jsonl file") from None
    except UnicodeDecodeError:
        raise UsageError("is no text in UTF-8", where=str(path), remedy="name a .txt or .jsonl file") from None
    found, total = [], 0
    for text in texts:
        found.append(np.asarray(case.loaded.text.encode(text, special=False), np.int64))
        if (total := total + len(found[-1])) > MOST:
            break
    return found


def _counts(texts: Sequence[np.ndarray], size: int) -> np.ndarray:
    """int64 [vocabulary]"""
    tokens = np.concatenate(texts) if texts else np.zeros(0, np.int64)
    return np.bincount(tokens[tokens < size], minlength=size)


def _sample(counts: np.ndarray, number: int, seed: int) -> np.ndarray:
    """`number` of the tokens, drawn without putting back: so that all are compared by equally many."""
    drawn: np.ndarray = np.random.default_rng(seed).multivariate_hypergeometric(counts, min(number, int(counts.sum())))
    return drawn


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Bits, 0 to 1."""
    p, q = one / max(one.sum(), 1), other / max(other.sum(), 1)
    middle = (p + q) / 2
    terms = [float(np.sum(x[x > 0] * np.log2(x[x > 0] / middle[x > 0]))) for x in (p, q)]
    return sum(terms) / 2


def _losses(case: Case) -> str:
    """The loss on either text, where there is an original to lose against."""
    if case.complaint.against is None:
        return ""
    assert case.complaint.data is not None
    cut = windows_of(case.loaded, read_text(case.complaint.data).documents, context=min(CONTEXT, case.loaded.max_model_len), windows=WINDOWS)
    calibration = compare(case.original, case.loaded, cut).kl.value
    return f"; KL {case.comparison.kl.value:.4g} on the traffic, {calibration:.4g} on the calibration text"


CAUSE = Cause(80, "is the calibration text like the traffic?", look, (UNLIKE,), unless=("tokenizer_differs",))
