"""The scorer against one forward of each sequence by itself."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.engine import Sampling
from octavo.errors import OctavoError
from octavo.evaluate.scoring import Scorer
from octavo.loading import LoadedModel, load
from octavo.quality import Windows, logits_of, negative_log_likelihood


@pytest.fixture(scope="module")
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return load(request.getfixturevalue("shared_data") / "models" / "stories260k-hf", quantization="16bit", use_cache=False)


def alone(loaded: LoadedModel, context: list[int], after: list[int]) -> tuple[float, bool]:
    windows = Windows(np.array([[*context, *after]], np.int32), np.array([len(after)]))
    pairs = list(logits_of(loaded, windows))
    losses = sum(float(negative_log_likelihood(logits, targets).sum()) for logits, targets in pairs)
    return -losses, all((logits.argmax(axis=1) == targets).all() for logits, targets in pairs)


def test_equals_each_sequence_alone(loaded: LoadedModel) -> None:
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return draw.integers(5, loaded.vocab_size, count).tolist()

    contexts = [ids(n) for n in (1, 2, 15, 16, 17, 18, 31, 33, 64, 65, 100, 257, 400)]
    requests = [(context, ids(int(n))) for context in contexts for n in draw.integers(1, 40, 4)]
    seen: list[int] = []
    with Scorer(loaded) as scorer:
        found = scorer.score(requests, seen.append)
        assert scorer.score(requests[5:6]) == found[5:6], "what is scored along with it changes nothing"
    assert sum(seen) == len(requests)
    for (value, _), (expected, _) in zip(found, [alone(loaded, *request) for request in requests], strict=True):
        assert value == pytest.approx(expected, rel=2e-3, abs=1e-2)


def test_greedy_answers_are_known_as_such(loaded: LoadedModel) -> None:
    prompts = [loaded.text.encode(text) for text in ("Once upon a time", "The little dog", "Tom and Mia went to the park. They")]
    sampling = Sampling(temperature=0, max_tokens=12)
    with Scorer(loaded) as scorer:
        answers = scorer.generate([(prompt, sampling) for prompt in prompts])
        whole = [loaded.text.encode(loaded.text.decode(prompt) + answer) for prompt, answer in zip(prompts, answers, strict=True)]
        same = [(prompt, ids[len(prompt) :]) for prompt, ids in zip(prompts, whole, strict=True) if ids[: len(prompt)] == prompt]
        assert same and all(greedy for _, greedy in scorer.score(same))
        changed = [(prompt, [*after[:-1], after[-1] + 1]) for prompt, after in same]
        assert not any(greedy for _, greedy in scorer.score(changed))
        assert scorer.generate([(prompts[0], Sampling(temperature=0, max_tokens=40, stop=("there",)))])[0].endswith(" ")


def test_what_does_not_fit(loaded: LoadedModel) -> None:
    with Scorer(loaded) as scorer:
        long = [7] * 2000
        assert scorer.score([(long, [9, 10])])[0][0] == pytest.approx(alone(loaded, long[: scorer.max_length - 2], [9, 10])[0], rel=2e-3)
        for context, after in (([], [1]), ([1], []), ([1], long)):
            with pytest.raises(OctavoError, match="do not fit"):
                scorer.score([(context, after)])
