"""The block-by-block forward against the reference backend, and statistics of inputs against float64, for any number of threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.cache import PAGE, Step
from octavo.calibration import Blocks, Group
from octavo.calibration.blocks import Weights
from octavo.checkpoints import open_checkpoint
from octavo.loading import load, open_model

SEQUENCES, LENGTH = 5, 40


@pytest.fixture(params=["stories260k-hf", "babyllama105-hf"])
def folder(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    return shared_data / "models" / str(request.param)


def ids_of(folder: Path, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (SEQUENCES, LENGTH)).astype(np.int32)


def test_same_logits_as_the_reference(folder: Path) -> None:
    checkpoint, model, found = open_model(open_checkpoint(folder), LENGTH)
    weights, ids = Weights(checkpoint, found), ids_of(folder, model.vocab_size)
    with Blocks(model, weights, ids, 2) as blocks:
        for block in blocks:
            block.run()
            block.finish()
        x = np.concatenate([blocks.x.chunk(c) for c in range(blocks.x.chunks)]).astype(np.float64)
    gain = weights.get("model.norm.weight")
    normed = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + model.norm.eps) * (gain + model.norm.offset)
    logits = normed @ weights.get("model.embed_tokens.weight" if model.tied else "lm_head.weight").T
    reference = load(folder, quantization="32bit", backend="reference", use_cache=False)
    rows, pages = np.arange(LENGTH, dtype=np.int32), -(-LENGTH // PAGE)
    for sequence in range(SEQUENCES):
        step = Step(tokens=ids[sequence], positions=rows, slots=rows, starts=np.array([0, LENGTH], np.int32), lengths=np.array([LENGTH], np.int32),
                    tables=np.arange(pages, dtype=np.int32)[None], select=rows)
        expected = reference.forward(step, reference.new_pool(pages))
        np.testing.assert_allclose(logits[sequence * LENGTH :][:LENGTH], expected, atol=2e-4)


def test_statistics_and_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.calibration.rows.CHUNK", 2 * LENGTH)  # several chunks
    monkeypatch.setattr("octavo.calibration.products._pairs", lambda: "")  # sharper than they are: test_products.py
    checkpoint, model, found = open_model(open_checkpoint(folder), LENGTH)
    ids = ids_of(folder, model.vocab_size)
    grams: dict[int, list[bytes]] = {}
    for threads in (1, 3):
        grams[threads] = []
        with Blocks(model, Weights(checkpoint, found), ids, threads) as blocks:

            def visit(group: Group, of: list[bytes] = grams[threads]) -> None:
                known = group.statistics()
                x = group.inputs(ids.size).astype(np.float64)
                assert known.gram is not None and known.rows == len(x) == ids.size
                counts = np.concatenate(group.counts()).astype(np.float64)
                assert counts.shape == (len(x),) and abs(counts.mean() - 1) < 1e-5 and counts.std() > 0.05
                np.testing.assert_allclose(known.gram, x.T * counts @ x / len(x), rtol=1e-3, atol=1e-5 * (x * np.sqrt(counts)[:, None]).max() ** 2)
                np.testing.assert_allclose(known.mean_square, counts @ x**2 / len(x), rtol=1e-4)
                np.testing.assert_allclose(known.mean_abs, np.abs(x).mean(axis=0), rtol=1e-5)
                np.testing.assert_array_equal(known.largest, np.abs(x).max(axis=0).astype(np.float32))
                of.append(known.gram.tobytes())

            for block in blocks:
                block.run(visit)
                block.finish()
    assert grams[1] == grams[3] and len(grams[1]) == 4 * model.layers
