"""Static scales of inputs: found by the observer, stored with the checkpoint, and what runs: native kernels, the float64 reference and transformers agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers as hf
from models.tiny import BASE, VOCABULARY, Driver, build, expected_logits, random_tokens

from octavo.cli import main
from octavo.errors import SchemeError, UnknownNameError, UsageError
from octavo.loading import LoadedModel, load
from octavo.quantize import Wish, quantize

ROWS, LENGTH = 6, 24


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("original")
    model = build(folder, hf.LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "tie_word_embeddings": True}))
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32))
    return folder, model


def wish(folder: Path, scheme: str = "W8A8ts", **changes: object) -> Wish:
    return Wish(**{"scheme": scheme, "method": "rtn", "data": folder / "ids.npy", "sequences": ROWS, "tokens": LENGTH, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(original: tuple[Path, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    quantize(original[0], out, wish(original[0], observer="min-max"), threads=1)
    return out


def logits_of(loaded: LoadedModel) -> np.ndarray:
    return Driver(loaded).feed({0: random_tokens(40)})[0]


def test_the_scale_is_that_of_the_inputs_that_calibration_saw(original: tuple[Path, torch.nn.Module], made: Path) -> None:
    seen: list[torch.Tensor] = []
    model = original[1]
    hook = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[union-attr,index]
    expected_logits(model, np.load(original[0] / "ids.npy").reshape(-1)[:LENGTH])
    for row in np.load(original[0] / "ids.npy")[1:]:
        expected_logits(model, row)
    hook.remove()
    stored = safetensors.numpy.load_file(made / "model.safetensors")
    prefix = "model.layers.0.self_attn."
    scale = stored[f"{prefix}q_proj.input_scale"]
    assert scale.reshape(()) * 127 == pytest.approx(float(torch.cat(seen, 1).abs().max()), rel=1e-5)
    assert stored[f"{prefix}k_proj.input_scale"] == stored[f"{prefix}v_proj.input_scale"] == scale
    assert sum(name.endswith("input_scale") for name in stored) == 14 and not any("lm_head" in name for name in stored)


@pytest.mark.usefixtures("float_lanes")
def test_kernels_reference_and_transformers_agree(original: tuple[Path, torch.nn.Module], made: Path, tmp_path: Path) -> None:
    native = load(made, cache_dir=tmp_path)
    assert not native.report.notes and str(native.plan.default).startswith("W8A8ts")
    got = logits_of(native)
    again = load(made, cache_dir=tmp_path)
    assert again.report.cache_hit and np.array_equal(logits_of(again), got)
    reference = logits_of(load(made, backend="reference", use_cache=False))
    assert np.abs(got - reference).max() < 5e-3 * np.abs(reference).max()
    theirs = hf.AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    expected = expected_logits(theirs, random_tokens(40))
    plain = expected_logits(original[1], random_tokens(40))
    ours = logits_of(load(made, kv_cache="fp32", use_cache=False))
    assert np.abs(ours - expected).mean() < 0.1 * np.abs(plain - expected).mean()  # a code here and there falls on the other side


def test_octavo_s_own_format_keeps_them(original: tuple[Path, torch.nn.Module], made: Path, tmp_path: Path) -> None:
    quantize(original[0], tmp_path / "own", wish(original[0], observer="min-max"), to="octavo", threads=2)
    assert np.array_equal(logits_of(load(tmp_path / "own", use_cache=False)), logits_of(load(made, use_cache=False)))


def test_resuming_and_threads_change_no_byte(original: tuple[Path, torch.nn.Module], made: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(original[0], tmp_path / "out", wish(original[0], observer="min-max"), threads=2, on_progress=stop)
    report = quantize(original[0], tmp_path / "out", wish(original[0], observer="min-max"), threads=2)
    assert report.resumed == 1 and report.settings["observer"] == "min-max"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_fp8_is_written_with_one_scale_for_inputs(original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    quantize(original[0], tmp_path / "out", wish(original[0], "Wfp8tAfp8ts"), threads=1)
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as stored:
        assert stored.get_tensor("model.layers.1.mlp.down_proj.input_scale") > 0
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    plain = expected_logits(original[1], random_tokens(40))
    assert np.corrcoef(expected_logits(theirs, random_tokens(40)).ravel(), plain.ravel())[0, 1] > 0.98
    assert np.corrcoef(logits_of(load(tmp_path / "out", use_cache=False)).ravel(), plain.ravel())[0, 1] > 0.98


def test_refusals_come_first(original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder = original[0]
    for bad, error, text in ((wish(folder, data=None), UsageError, "needs calibration text"), (wish(folder, observer="average"), UnknownNameError, "min-max"),
                             (wish(folder, "W8A8g32s"), SchemeError, "one scale"), (wish(folder, "Wfp8tAfp8ts", observer="mse"), UsageError, "integers")):
        with pytest.raises(error, match=text):
            quantize(folder, tmp_path / "out", bad, threads=1)
    assert not list(tmp_path.iterdir())
    arguments = ["quantize", str(folder), str(tmp_path / "cli"), "--scheme", "W8A8s", "--method", "rtn", "--data", str(folder / "ids.npy"),
                 "--sequences", str(ROWS), "--tokens", str(LENGTH), "--observer", "percentile", "--no-receipt"]
    assert main(arguments) == 0
