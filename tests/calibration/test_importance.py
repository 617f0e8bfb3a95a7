"""Mean squares of the inputs of linears, by the serving kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo import _native
from octavo.calibration import Blocks, Group
from octavo.calibration.blocks import Weights
from octavo.calibration.importance import mean_squares
from octavo.checkpoints import open_checkpoint
from octavo.errors import ModelError
from octavo.kernels.native import Constant
from octavo.loading import load, open_model

LENGTH, SEQUENCES = 40, 7


def exact(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    checkpoint, model, found = open_model(open_checkpoint(folder), LENGTH)
    squares: dict[str, np.ndarray] = {}

    def visit(group: Group) -> None:
        squares.update(dict.fromkeys(group.names, group.statistics(gram=False, moments=False, counted=False).mean_square))

    with Blocks(model, Weights(checkpoint, found), ids, 2) as blocks:
        for block in blocks:
            block.run(visit)
            block.finish()
    return squares


@pytest.mark.parametrize("name", ["stories260k-hf", "babyllama105-hf"])
def test_are_those_of_the_float_forward(shared_data: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.calibration.importance.ROWS", 3 * LENGTH)  # several steps, the last one smaller
    folder = shared_data / "models" / name
    plain = load(folder, quantization="32bit", use_cache=False)
    ids = np.random.default_rng(3).integers(0, plain.vocab_size, (SEQUENCES, LENGTH), dtype=np.int32)
    wanted = exact(folder, ids)
    found = mean_squares(plain, ids)
    assert found.keys() == wanted.keys() and len(found) == 7 * plain.model.layers
    for one, values in wanted.items():
        np.testing.assert_allclose(found[one], values, rtol=1e-3, atol=1e-5 * values.max())
    rounded = [mean_squares(load(folder, quantization="8bit", use_cache=False, threads=threads), ids) for threads in (1, 2)]
    for one, values in wanted.items():
        np.testing.assert_array_equal(rounded[0][one], rounded[1][one])
        assert abs(np.log(rounded[0][one].sum() / values.sum())) < 0.05


def test_inputs_that_are_not_finite(shared_data: Path) -> None:
    loaded = load(shared_data / "models" / "stories260k-hf", quantization="32bit", use_cache=False)
    norm = loaded.bound.vectors["model.layers.1.post_attention_layernorm.weight"]
    assert isinstance(norm, Constant)
    norm.array[:] = np.inf
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate_proj\.weight are not finite"):
        mean_squares(loaded, np.ones((2, 8), np.int32))


def test_sums_of_another_width_are_refused() -> None:
    program = _native.Program(_native.Team(1))
    with pytest.raises(ValueError, match="one sum for each column"):
        program.squares(program.buffer(70, False), np.zeros(69))
