"""qep: its weights against float64 least squares, that nothing moves where nothing was lost, and that threads and a resumed run change no bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from models.tiny import BASE, build, random_tokens

from octavo.calibration import Block, Blocks, Group
from octavo.calibration.blocks import Weights
from octavo.checkpoints import open_checkpoint
from octavo.errors import UsageError
from octavo.loading import open_model
from octavo.models import Decoder
from octavo.qtensor import quantize as to_nearest
from octavo.quantize import Wish, quantize
from octavo.quantize.transforms.qep import Qep
from octavo.schemes import TensorSpec

GROUPS = TensorSpec("int2", "group", 32, symmetric=False, scale_format="fp16")
FAMILIES: dict[str, tuple[type[hf.PretrainedConfig], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 32, "sliding_window": 20, "query_pre_attn_scalar": 48}),  # norms behind o_proj and down_proj
}


@pytest.fixture(autouse=True)
def _own_cache(cache_dir: Path) -> None:
    """Digests are remembered in the test's own folder."""


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, changes = FAMILIES[request.param]
    build(tmp_path / "tiny", kind(**{**BASE, "num_hidden_layers": 2, **changes}))
    return tmp_path / "tiny"


def blocks_of(folder: Path, threads: int = 2) -> Blocks:
    checkpoint, model, found = open_model(open_checkpoint(folder), 64)
    return Blocks(model, Weights(checkpoint, found), random_tokens(8 * 40, 1).reshape(8, 40), threads, original=True)


def test_least_squares_to_the_unrounded_outputs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.calibration.rows.CHUNK", 80)  # several chunks
    monkeypatch.setattr("octavo.calibration.products._pairs", lambda: "")  # sharper than they are: test_products.py
    one, checked, better = Qep(damping=0.02), 0, []
    with blocks_of(tiny) as blocks:
        for block in blocks:
            block.refer()
            wanted: list[np.ndarray] = []

            def note(group: Group, wanted: list[np.ndarray] = wanted) -> None:
                reference, given = group._reference, group._residual
                assert reference is not None
                for out in reference.outs:
                    y = np.concatenate([out.chunk(c) for c in range(4)]).astype(np.float64)
                    wanted.append(y - (0 if given is None else np.concatenate([given.chunk(c) for c in range(4)])))

            def visit(group: Group, block: Block = block, wanted: list[np.ndarray] = wanted) -> list[np.ndarray]:
                nonlocal checked
                x = group.inputs(320).astype(np.float64)
                counts = np.concatenate(group.counts()).astype(np.float64)[:, None]
                gram = x.T @ (counts * x) / len(x)
                before = [matrix.values for matrix in group.weights]
                note(group)
                one.retarget(block, group, group.names)
                damped = gram + 0.02 * np.trace(gram) / len(gram) * np.eye(len(gram))
                for matrix, bias, old, y in zip(group.weights, group.biases, before, wanted[-len(before) :], strict=True):
                    lacking = y - x @ old.T - (0 if bias is None else bias.values)
                    expected = old + np.linalg.solve(damped, (lacking.T @ (counts * x) / len(x)).T).T
                    np.testing.assert_allclose(matrix.values, expected, atol=2e-3 * np.abs(expected).max())
                    now = lacking - x @ (matrix.values - old).T
                    better.append((counts * np.square(lacking)).sum() - (counts * np.square(now)).sum())
                    checked += 1
                return [to_nearest(matrix.values, GROUPS).dequantize() for matrix in group.weights]

            block.run(visit)
            block.finish()
    assert checked == 14 and min(better) >= -1e-6 and sum(gain > 0 for gain in better) >= 10


def test_moves_nothing_where_nothing_was_lost(tiny: Path) -> None:
    one = Qep()
    with blocks_of(tiny) as blocks:
        for block in blocks:
            block.refer()

            def visit(group: Group, block: Block = block) -> None:
                before = [matrix.values for matrix in group.weights]
                one.retarget(block, group, group.names)
                for matrix, old in zip(group.weights, before, strict=True):
                    np.testing.assert_allclose(matrix.values, old, atol=1e-4 * np.abs(old).max())

            block.run(visit)
            block.finish()


def test_the_output_comes_closer(shared_data: Path) -> None:
    """babyllama in 2 bits, to nearest."""
    lost = {}
    for with_it in (False, True):
        with blocks_of(shared_data / "models" / "babyllama105-hf") as blocks:
            for block in blocks:
                block.refer()
                block.changes = [lambda group, block=block: Qep().retarget(block, group, group.names)] if with_it else []
                block.run(lambda group: [to_nearest(matrix.values, GROUPS).dequantize() for matrix in group.weights])
                block.finish()
            assert blocks.original is not None
            lost[with_it] = sum(float(np.square(blocks.x.chunk(c) - blocks.original.chunk(c)).sum()) for c in range(blocks.x.chunks))
    assert lost[True] < 0.8 * lost[False]


def test_a_finished_layer_is_let_go(tiny: Path) -> None:
    """Its rows are gone before the next layer's come, without the garbage collector's help."""
    one, seen = Qep(), []
    gc.disable()
    try:
        with blocks_of(tiny) as blocks:
            for block in blocks:
                block.refer()
                block.changes = [lambda group, block=block: one.retarget(block, group, group.names)]
                block.run(lambda group: [to_nearest(matrix.values, GROUPS).dequantize() for matrix in group.weights])
                block.finish()
                seen.append(weakref.ref(block))
            del block
            assert [one() for one in seen] == [None, None]
    finally:
        gc.enable()


def test_what_is_not_rounded_stays(tiny: Path) -> None:
    """It would be written as it is, so the layers behind it must see it so."""
    with blocks_of(tiny) as blocks:
        for block in blocks:
            block.refer()

            def visit(group: Group, block: Block = block) -> list[np.ndarray]:
                before, rounded = [matrix.values for matrix in group.weights], group.names[-1:]
                Qep().retarget(block, group, rounded)
                moved = [matrix.values is not old for matrix, old in zip(group.weights, before, strict=True)]
                assert moved == [name in rounded for name in group.names]
                return [to_nearest(matrix.values, GROUPS).dequantize() for matrix in group.weights]

            block.run(visit)
            block.finish()


class Killed(Exception):
    pass


@pytest.mark.parametrize("before", [(), ("awq",), ("hadamard",)])
def test_same_bytes_resumed_and_with_more_threads(shared_data: Path, tmp_path: Path, before: tuple[str, ...]) -> None:
    model = shared_data / "models" / "babyllama105-hf"
    asked = Wish("W2g32zA16", "gptq", transforms=(*before, "qep"), data=shared_data / "text" / "tinystories-a.jsonl", sequences=4, tokens=64,
                 options={"hadamard.residual": "yes"} if before == ("hadamard",) else {})
    quantize(model, tmp_path / "one", asked, threads=1)

    def kill(done: int, layers: int, seconds: float) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        quantize(model, tmp_path / "two", asked, threads=2, on_progress=kill)
    quantize(model, tmp_path / "two", asked, threads=2)
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (tmp_path / "two" / "model.safetensors").read_bytes()
    plain = Wish("W2g32zA16", "gptq", data=asked.data, sequences=4, tokens=64)
    quantize(model, tmp_path / "plain", plain, threads=1)
    assert (tmp_path / "plain" / "model.safetensors").read_bytes() != (tmp_path / "one" / "model.safetensors").read_bytes()


def test_only_the_stream(tiny: Path) -> None:
    moved: dict[str, bool] = {}
    with blocks_of(tiny) as blocks:
        for block in blocks:
            block.refer()

            def visit(group: Group, block: Block = block) -> list[np.ndarray]:
                before = [matrix.values for matrix in group.weights]
                Qep(part="stream").retarget(block, group, group.names)
                moved.update({matrix.name: matrix.values is not old for matrix, old in zip(group.weights, before, strict=True)})
                return [to_nearest(matrix.values, GROUPS).dequantize() for matrix in group.weights]

            block.run(visit)
            block.finish()
            plain = type(block.model).layer is Decoder.layer
    assert all(changed == (plain and name.split(".")[-2] in ("o_proj", "down_proj")) for name, changed in moved.items())


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 1.5}, {"damping": 0.0}, {"part": "half"}])
def test_refuses_what_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="qep"):
        Qep(**options)
