"""Precisions whose inputs are rotated before they are rounded (W8A8h): online, from the kept copy, by every backend, with a tied embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from models.tiny import BASE, Driver, build, expected_logits, random_tokens

from octavo import qtensor
from octavo.checkpoints import open_checkpoint
from octavo.kernels.reference import ReferenceOps, ReferenceWeight
from octavo.loading import load
from octavo.schemes import TensorSpec, parse_tensor

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A tied Llama of 96 and 160 columns in bfloat16, one channel of whose stream is large; and its logits of 60 tokens."""
    folder = tmp_path_factory.mktemp("tied")
    model = build(folder, hf.LlamaConfig(**{**BASE, "hidden_size": 96, "intermediate_size": 160, "tie_word_embeddings": True}), torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter[7] = 30.0
    model.save_pretrained(folder)
    return folder, expected_logits(model.float(), random_tokens(60, 2))


def lost(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(found - expected).mean() / expected.var())


def logits(source: Path, quantization: str | None, **more: object) -> np.ndarray:
    return Driver(load(source, quantization=quantization, **{"use_cache": False, **more})).feed({0: random_tokens(60, 2)})[0]  # type: ignore[arg-type]


def test_a_rotation_takes_an_outlier_from_all_inputs(tied: tuple[Path, np.ndarray]) -> None:
    folder, expected = tied
    plain, turned = lost(logits(folder, "W8A8"), expected), lost(logits(folder, "W8A8h"), expected)
    assert turned < plain / 2


@pytest.mark.parametrize("scheme", ["W8A8h", "W4g32A8g32h", "W8g64zA8h", "WNF4A8h", "W8A8g32o6h"])
def test_native_and_reference_agree(tied: tuple[Path, np.ndarray], scheme: str) -> None:
    folder, expected = tied
    ours, reference = logits(folder, scheme), logits(folder, scheme, backend="reference")
    assert lost(ours, reference) < lost(reference, expected) / 3  # int8: values on the edge between two codes


def test_threads_company_and_chunks_change_no_bit(tied: tuple[Path, np.ndarray]) -> None:
    folder, _ = tied
    loaded = load(folder, quantization="W8A8h", use_cache=False, threads=2)
    tokens = random_tokens(60, 2)
    alone = Driver(loaded).feed({0: tokens})[0]
    together = Driver(loaded, 2).feed({0: tokens, 1: random_tokens(33, 5)})[0]
    assert np.array_equal(alone, together)
    assert np.array_equal(alone, logits(folder, "W8A8h", threads=1))


def test_the_kept_copy_is_the_same_model(tmp_path: Path, tied: tuple[Path, np.ndarray]) -> None:
    folder, _ = tied
    first = logits(folder, "W8A8h", use_cache=True, cache_dir=tmp_path)
    again = load(folder, quantization="W8A8h", cache_dir=tmp_path)
    assert again.report.cache_hit
    assert np.array_equal(Driver(again).feed({0: random_tokens(60, 2)})[0], first)
    held = open_checkpoint(next(tmp_path.glob("models/*")))
    assert held.read(EMBEDDING).rotation == 32 and held.read("model.layers.0.mlp.down_proj.weight").rotation == 32


def test_what_is_stored_unrotated_is_rounded_again(tmp_path: Path, tied: tuple[Path, np.ndarray]) -> None:
    """Codes of the weight as it is are not codes of the rotated weight, though the precision of both is INT8 with a scale per row."""
    from octavo.conversion import convert

    folder, expected = tied
    convert(folder, tmp_path / "stored", to="compressed-tensors", quantization="W8A16")
    assert lost(logits(tmp_path / "stored", "W8A8h"), expected) < 2 * lost(logits(folder, "W8A8h"), expected)


def test_reference_rounds_rotated_inputs() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((16, 64)).astype(np.float32)
    tensor = qtensor.quantize(w, TensorSpec("int8", "channel"), rotation=64)
    weight = ReferenceOps().prepare(tensor, parse_tensor("8h", "activation"))
    assert isinstance(weight, ReferenceWeight) and weight.rotation == 64
    x = rng.standard_normal((3, 64))
    x[:, 5] = 50
    assert np.abs(weight.inputs(x) @ weight.values.T - x @ w.T).max() < 0.02 * np.abs(x @ w.T).max()


@pytest.mark.parametrize("shape,block", [((300, 576), 64), ((3, 4, 96), 32), ((0, 64), 64), ((5, 97), 1), ((1, 64), 64)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_numpy_and_torch_rotate_alike(shape: tuple[int, ...], block: int, kind: type) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(kind)
    found = qtensor.rotate(x, block)
    assert found.dtype == x.dtype and np.array_equal(found, qtensor.rotate(torch.from_numpy(x), block).numpy())
    assert np.allclose(qtensor.rotate(found, block), x, atol=1e-5)
