"""The key-value cache in a checkpoint: the scheme's C part is written, read back and served without an option; static scales are those that keys (after the
rotary embedding) and values have, agree with compressed-tensors, and change no byte between runs; what cannot hold them refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers as hf
from compressed_tensors.quantization import QuantizationConfig
from models.tiny import BASE, VOCABULARY, Driver, build, random_tokens

from octavo.checkpoints import open_checkpoint
from octavo.cli import main
from octavo.cli.quantize import _progress
from octavo.conversion import convert
from octavo.errors import OctavoError, UsageError
from octavo.inspect import facts_of, verdicts
from octavo.loading import LoadedModel, load
from octavo.quantize import Wish, cache_beside_search, quantize
from octavo.schemes import CacheSpec, Plan

ROWS, LENGTH, LAYERS = 6, 24, 2


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("original")
    model = build(folder, hf.LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS, "tie_word_embeddings": True}))
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (ROWS, LENGTH), dtype=np.int32))
    return folder, model


def wish(folder: Path, scheme: str, **changes: object) -> Wish:
    return Wish(**{"scheme": scheme, "method": "rtn", "data": folder / "ids.npy", "sequences": ROWS, "tokens": LENGTH, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def static(original: tuple[Path, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("static") / "out"
    quantize(original[0], out, wish(original[0], "W8A16Cfp8ts"), threads=1)
    return out


def logits_of(loaded: LoadedModel) -> np.ndarray:
    return Driver(loaded).feed({0: random_tokens(40)})[0]


def said(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize(("scheme", "largest"), [("W16A16Cfp8ts", 448), ("W16A16C8s", 127)])
def test_scales_are_those_of_the_keys_and_values_of_the_text(scheme: str, largest: int, original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, model = original
    quantize(folder, tmp_path / "out", wish(folder, scheme), threads=2)  # weights stay as they are, so transformers' cache tells what was measured
    with torch.no_grad():
        cache = model(torch.from_numpy(np.load(folder / "ids.npy").astype(np.int64)), use_cache=True).past_key_values
    stored = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    for layer in range(LAYERS):
        for place, values in (("k", cache.layers[layer].keys), ("v", cache.layers[layer].values)):  # [sequences, heads, tokens, dim]
            scale = stored[f"model.layers.{layer}.self_attn.{place}_scale"]
            most = values.abs().amax(dim=(0, 2, 3)).numpy()
            assert scale.shape == ((1,) if "t" in scheme else (2, 1, 1))
            np.testing.assert_allclose(scale.reshape(-1) * largest, most.max() if "t" in scheme else most, rtol=1e-5)
    assert np.array_equal(stored["model.layers.1.mlp.up_proj.weight"], model.state_dict()["model.layers.1.mlp.up_proj.weight"].numpy())
    loaded = load(tmp_path / "out", use_cache=False)
    assert loaded.cache_spec.format == {448: "fp8e4m3", 127: "int8"}[largest]
    assert ("per head" in " ".join(loaded.report.notes)) is ("t" not in scheme)


@pytest.mark.usefixtures("float_lanes")
def test_a_static_cache_serves_as_in_transformers(static: Path, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file goes through compressed-tensors' own cache, whose logits ours equal; a 16-bit cache, asked for, gives others."""
    theirs = expected_cached(hf.AutoModelForCausalLM.from_pretrained(static, dtype=torch.float32).eval())
    loaded = load(static, cache_dir=tmp_path)
    assert str(loaded.cache_spec.format) == "fp8e4m3" and str(loaded.plan.default) == "W8A16Cfp8ts"
    ours, wide = logits_of(loaded), logits_of(load(static, kv_cache="fp32", use_cache=False))
    assert np.abs(ours - theirs).mean() < 0.02 * np.abs(wide - theirs).mean()
    again = load(static, cache_dir=tmp_path)
    assert again.report.cache_hit and np.array_equal(logits_of(again), ours)
    assert main(["inspect", str(static)]) == 0
    assert f"KV cache: fp8ts, {2 * LAYERS} stored scales" in capsys.readouterr().out


def expected_cached(model: torch.nn.Module) -> np.ndarray:
    """As expected_logits, with keys and values through the cache."""
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(random_tokens(40)[None].astype(np.int64)), use_cache=True).logits[0].numpy()
    return found


def test_runs_threads_and_interruptions_change_no_byte(original: tuple[Path, torch.nn.Module], static: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(original[0], tmp_path / "out", wish(original[0], "W8A16Cfp8ts"), threads=2, on_progress=stop)
    report = quantize(original[0], tmp_path / "out", wish(original[0], "W8A16Cfp8ts"), threads=2)
    assert report.resumed == 1 and report.settings["cache_observer"] == "min-max"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (static / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("float_lanes")
@pytest.mark.parametrize(("scheme", "strategy", "bits"), [("W8A16C8", "token", 8), ("W8A16C4", "token", 4), ("W8A16Cfp8", "token", 8),
                                                          ("W8A16Cfp8s", "attn_head", 8)])
def test_every_cache_is_said_as_the_library_reads_it(scheme: str, strategy: str, bits: int, original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    report = quantize(original[0], tmp_path / "out", wish(original[0], scheme), threads=1)
    assert any("vLLM does not load" in note for note in report.notes) is (strategy == "token")
    checkpoint = open_checkpoint(tmp_path / "out")
    vllm = next(verdict for verdict in verdicts(checkpoint, facts_of(checkpoint)) if verdict.engine == "vLLM")
    assert (vllm.answer, "scales per token" in vllm.why) == (("no", True) if strategy == "token" else ("yes", False))
    config = QuantizationConfig(**said(tmp_path / "out"))  # type: ignore[arg-type]
    cache = config.kv_cache_scheme
    assert cache is not None and (cache.num_bits, cache.strategy, bool(cache.dynamic)) == (bits, strategy, strategy == "token")
    expected = Plan.parse(scheme).default.cache
    assert open_checkpoint(tmp_path / "out").cache == expected
    loaded = load(tmp_path / "out", use_cache=False)
    assert loaded.plan.default.cache == expected and loaded.cache_spec.format == expected.format
    assert load(tmp_path / "out", kv_cache="bf16", use_cache=False).cache_spec.format == "bf16"  # what is asked for wins
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert np.corrcoef(expected_cached(theirs).ravel(), logits_of(loaded).ravel())[0, 1] > 0.9  # theirs rounds unrotated keys


def test_octavo_s_own_format_holds_every_cache(original: tuple[Path, torch.nn.Module], static: Path, tmp_path: Path,
                                               capsys: pytest.CaptureFixture[str], cache_dir: Path) -> None:
    folder = original[0]
    quantize(folder, tmp_path / "static", wish(folder, "W8A16Cfp8ts"), to="octavo", threads=1)
    assert np.array_equal(logits_of(load(tmp_path / "static", use_cache=False)), logits_of(load(static, use_cache=False)))
    quantize(folder, tmp_path / "mixed", wish(folder, "W8A16K8V4; *layers.0.self_attn.kv_cache=C8"), to="octavo", threads=1)
    loaded = load(tmp_path / "mixed", use_cache=False)
    assert isinstance(loaded.cache_spec, CacheSpec) and [str(v.format) for _, v in loaded.cache_spec.layers] == ["int8", "int4"]
    quantize(folder, tmp_path / "alone", wish(folder, "W16A16C8"), to="octavo", threads=1)
    alone = load(tmp_path / "alone", use_cache=False)
    assert alone.cache_spec.format == "int8" and np.array_equal(logits_of(alone), logits_of(load(folder, kv_cache="C8", use_cache=False)))
    assert main(["inspect", str(tmp_path / "static")]) == 0 and main(["inspect", str(tmp_path / "mixed")]) == 0
    shown = capsys.readouterr().out
    assert f"KV cache: fp8ts, {2 * LAYERS} stored scales" in shown and "KV cache: C8 in layers 0, K8V4 in layers 1" in shown
    broken = json.loads((tmp_path / "static" / "config.json").read_text())
    broken["quantization_config"]["cache_scales"]["model.layers.0.self_attn.k"] = [float("nan")]
    (tmp_path / "static" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(OctavoError, match="not numbers above 0"):
        load(tmp_path / "static", use_cache=False)


@pytest.mark.parametrize(("scheme", "to", "says"), [
    ("W4g32A16C8", "gptq", "no place for the precision of a key-value cache.*--kv-cache C8"), ("W4g32A16C8ts", "awq", "--kv-cache C8"),
    ("W8A16C8", "modelopt", "one stored scale a layer"), ("W8A16K8V4", "compressed-tensors", "--to octavo"),
    ("W8A16C4ts", "octavo", "8 bits in all layers"), ("W8A16K8tsV8", "octavo", "8 bits in all layers")])
def test_formats_without_a_place_refuse_before_any_work(scheme: str, to: str, says: str, original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    with pytest.raises(OctavoError, match=says):
        quantize(original[0], tmp_path / "out", wish(original[0], scheme, data=None), to=to, threads=1)
    with pytest.raises(UsageError, match="needs calibration text"):
        quantize(original[0], tmp_path / "out", wish(original[0], "W8A16C8ts", data=None), threads=1)
    assert not list(tmp_path.iterdir())


def test_convert_writes_computed_caches_and_says_what_static_ones_need(original: tuple[Path, torch.nn.Module], static: Path, tmp_path: Path) -> None:
    convert(original[0], tmp_path / "c8", to="compressed-tensors", quantization="W8A16C8")
    assert load(tmp_path / "c8", use_cache=False).cache_spec.format == "int8"
    for name, says in (("W8A16C8ts", "octavo quantize"), ("W8A16K8V4", "--to octavo")):
        with pytest.raises(UsageError, match=says):
            convert(original[0], tmp_path / "out", to="compressed-tensors", quantization=name)
    convert(static, tmp_path / "modelopt", to="modelopt:fp8", requantize=True)
    assert open_checkpoint(tmp_path / "modelopt").cache == open_checkpoint(static).cache
    lost = convert(static, tmp_path / "gptq", to="gptq", requantize=True, dry_run=True)
    assert any("(Cfp8ts) is not carried along" in note for note in lost.notes)


def test_a_search_takes_the_cache_beside_it_and_nothing_else(original: tuple[Path, torch.nn.Module], tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert cache_beside_search("C8") == "C8"
    for scheme in ("W4g32A16C8", "A8C8", "C8; *down_proj*=W8"):
        with pytest.raises(UsageError, match="the search decides"):
            cache_beside_search(scheme)
    assert main(["quantize", str(original[0]), str(tmp_path / "out"), "--target-bits", "4.5", "--scheme", "W4g32C8"]) == 2
    assert "--scheme C8" in capsys.readouterr().err
    report = quantize(original[0], tmp_path / "out", wish(original[0], "W8A16; *v_proj*=W4g32", cache="C8"), threads=1)
    assert report.scheme.startswith("W8A16C8") and load(tmp_path / "out", use_cache=False).cache_spec.format == "int8"


def test_text_that_nothing_looks_at_is_told(original: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    report = quantize(original[0], tmp_path / "out", wish(original[0], "WNF4A16"), to="bitsandbytes", threads=1)
    assert any("--data was not read" in note for note in report.notes) and not report.samples
    with pytest.raises(UsageError, match=r"such as W2g32A16"):  # the bits that were asked for
        quantize(original[0], tmp_path / "two", wish(original[0], "WINT2"), threads=1)


def test_a_log_gets_a_line_of_progress_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    show = _progress("layer")
    for done in range(1, 7):
        show(done, 6, 12.0 * done)
    assert capsys.readouterr().err.splitlines() == ["layer 2 of 6, 48 s left", "layer 4 of 6, 24 s left", "layer 6 of 6, 0 s left"]


def test_the_text_of_the_receipt_is_not_calibrated_on(original: tuple[Path, torch.nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w3 w4 w5")
    for data, receipt, says in ((str(text), str(text), "is the calibration text"), ("receipt", "receipt", "quality is measured on this text")):
        assert main(["quantize", str(original[0]), str(tmp_path / "out"), "--data", data, "--receipt-text", receipt, "--scheme", "W8A8ts"]) == 2
        assert says in capsys.readouterr().err


