"""What a model had lost before counts: with a cache, a second quantization or another format on top, the sum is told, and what cannot be known is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from planting import LIMIT, plant

from octavo.cli import main
from octavo.cli.serve import Options, _online, run
from octavo.conversion import convert
from octavo.errors import OctavoError, QualityError, UsageError
from octavo.loading import load
from octavo.quality.earlier import joined, room_for
from octavo.quality.fit import fit_cache
from octavo.quality.online import Online
from octavo.quality.receipt import NAME, Receipt, read_receipt
from octavo.quality.receipt_of import receipt_of
from octavo.schemes import parse_cache

HOW = ({"kv_cache": "int8"}, {"quantization": "16bit"}, {"quantization": "8bit", "kv_cache": "auto"})


@pytest.fixture(scope="module")
def original(shared_data: Path) -> Path:
    return shared_data / "models" / "babyllama105-hf"


@pytest.fixture(scope="module")
def sound(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In 4 bits, with its receipt."""
    out = tmp_path_factory.mktemp("sound") / "quantized"
    convert(original, out, to="awq", quantization="W4g32z")
    receipt_of(original, out)
    return out


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def kl_of(folder: Path) -> float:
    receipt = read_receipt(folder / NAME)
    assert receipt is not None and receipt.status == "measured"
    return receipt.kl


def refused(model: Path, **options: str) -> str:
    with pytest.raises(OctavoError) as error:
        run(Options(str(model), port=0, max_kl=LIMIT, **options))  # type: ignore[arg-type]
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_a_planted_scale_is_refused_whatever_is_put_on_top(original: Path, model: Path, how: dict[str, str], cache_dir: Path) -> None:
    plant(model, "a bad scale")
    assert "they were changed since" in refused(model, **how), "the receipt is of the files before"
    (model / NAME).unlink()
    assert "came quantized and without a receipt" in refused(model, **how), "never compared with itself"
    assert "more than the 0.5 of --max-kl" in refused(model, against=str(original), **how)
    receipt_of(original, model)
    assert kl_of(model) > LIMIT and "more than the 0.5 of --max-kl" in refused(model, **how), "an honest receipt of a bad model"


def test_a_cache_adds_to_what_the_receipt_says(original: Path, sound: Path, tmp_path: Path) -> None:
    before = kl_of(sound)
    for quantization, cache in ((None, "int8"), (None, "int4"), ("16bit", None)):
        online = Online(load(sound, quantization=quantization, kv_cache=cache, cache_dir=tmp_path), str(sound), True, cache_dir=tmp_path)
        receipt = online.kept() or online.measure()
        steps = receipt.loss["steps"]
        assert receipt.status == "measured" and steps["earlier"] == before and receipt.kl >= before + steps["here"]
        assert "at most about" in receipt.line and receipt.original["earlier"]["original"]["name"] == "babyllama105-hf"
        assert online.kept(sure=True) == receipt, "known the next time"
        with pytest.raises(QualityError, match=r"at most: 0\.\d+ by the receipt of what it was made from.*--against the original"):
            receipt.refuse_above(before, "m")
        direct = replace(online, against=str(original)).measure()
        assert "steps" not in direct.loss and direct.kl < receipt.kl * 1.5 and receipt.kl < 2 * direct.kl + 0.01
        with pytest.raises(UsageError, match="no original to compare with"):
            online.only_original()


def test_what_cannot_be_known_is_said_with_what_can(sound: Path, model: Path, tmp_path: Path) -> None:
    (model / NAME).unlink()
    online = Online(load(model, kv_cache="int4", cache_dir=tmp_path), str(model), True, cache_dir=tmp_path)
    assert online.kept() is None
    receipt = online.measure()
    assert receipt.status == "not measured" and math.isnan(receipt.kl) and "--against" in receipt.reason and "Since then: KL 0." in receipt.reason
    assert online.kept() == receipt and not receipt.loss and receipt.result["since"]["tokens"] > 400
    sure = online.kept(sure=True)
    assert sure is not None and sure.status == "not measured" and not sure.text


def test_another_format_does_not_forget(sound: Path, model: Path, tmp_path: Path) -> None:
    convert(sound, tmp_path / "again", to="gptq", quantization="W8g32", requantize=True)
    again = receipt_of(sound, tmp_path / "again")
    assert again.kl > kl_of(sound) and again.loss["steps"]["earlier"] == kl_of(sound)
    plant(model, "a bad scale")
    for name, quantization, exact in (("rounded", "W8g32", False), ("same", None, True)):
        convert(model, tmp_path / name, to="gptq", quantization=quantization, requantize=not exact)
        receipt = receipt_of(model, tmp_path / name, exact=exact)
        assert receipt.status == "not measured" and "they were changed since" in receipt.reason, name
    (model / NAME).unlink()
    receipt = receipt_of(model, tmp_path / "same", exact=True)
    assert receipt.status == "not measured" and "without a receipt" in receipt.reason, "the same numbers as what is known of nobody"


def test_caches_that_differ_have_receipts_of_their_own(original: Path, tmp_path: Path) -> None:
    found: dict[float, Receipt] = {}
    for limit in (10.0, 3e-3, 3e-4, 1e-5):
        loaded = load(original, quantization="8bit", kv_cache="auto", max_kl=limit, cache_dir=tmp_path)
        online = Online(loaded, str(original), True, cache_dir=tmp_path)
        receipt = online.kept() or online.measure()
        assert receipt.result["cache"] == online._which["cache"] and receipt.settings["kv_cache"]["allowed"] in (limit, *found)
        found[limit] = receipt
    names = {receipt.result["cache"] for receipt in found.values()}
    assert len(names) >= 3 and len({receipt.kl for receipt in found.values()}) == len(names), "a narrower cache is not told by a wider one's receipt"
    assert len(list(tmp_path.glob("models/*/octavo-receipt-*.json"))) == len(names)


def test_the_cache_gets_what_the_weights_leave(original: Path, tmp_path: Path) -> None:
    def online() -> Online:
        return Online(load(original, quantization="4bit", kv_cache="bf16", cache_dir=tmp_path), str(original), True, cache_dir=tmp_path)

    weights = online().measure().kl
    for limit in (1.02 * weights, 1.3 * weights, 10.0):
        one = online()
        receipt = fit_cache(one, limit, True)
        assert receipt.status == "measured" and receipt.kl <= limit, "the whole keeps it"
        assert receipt.result["cache"] == one._which["cache"], "the receipt is of the cache that is served"
        assert one.loaded.kv_bytes_per_token == one.loaded.report.cache_search["bytes_per_token"]
    assert one.loaded.cache_spec.format == "int4" and receipt.kl > weights
    assert fit_cache(online(), 0.9 * weights, True).kl == pytest.approx(weights), "the weights alone are too much: theirs is the receipt"
    said = refused_at(original, 0.9 * weights, tmp_path)
    assert "weights alone" in said and f"more than the {0.9 * weights:.4g}" in said


def refused_at(model: Path, limit: float, cache_dir: Path) -> str:
    with pytest.raises(OctavoError) as error:
        run(Options(str(model), port=0, max_kl=limit, quantization="4bit", kv_cache="auto", cache_dir=cache_dir))
    return str(error.value)


def test_online_receipts_say_what_each_weight_lost(original: Path, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "original")
    loaded = load(tmp_path / "original", quantization="W4g32A16", cache_dir=tmp_path)
    online = Online(loaded, str(tmp_path / "original"), True, cache_dir=tmp_path)
    receipt = online.measure()
    by_files = read_receipt(sound / NAME)
    assert by_files is not None and len(receipt.weights) >= 35 and "model.safetensors" in receipt.original["sha256"]
    for name, errors in receipt.weights.items():
        assert errors["weight"] is not None and 0.001 < errors["weight"] < 0.2, name
    same = [(receipt.weights[name]["weight"], errors["weight"]) for name, errors in by_files.weights.items() if ".q_proj." in name]
    assert same and all(ours is not None and theirs is not None and 0.5 < ours / theirs < 2 for ours, theirs in same)
    assert online.kept(sure=True) == receipt
    assert replace(online, against=str(original)).kept() is None
    receipt.original["sha256"] = {"model.safetensors": "0" * 64}
    assert online._file is not None
    receipt.write(online._file)
    assert Online(loaded, str(tmp_path / "original"), True, cache_dir=tmp_path).kept(sure=True) is None, "the original's files are others now"


def test_the_doctor_believes_no_receipt_of_other_files(sound: Path, model: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "accuracy", str(sound)]) in (0, 1)
    assert "by its receipt: KL 0.0" in capsys.readouterr().out
    plant(model, "a bad scale")
    assert main(["doctor", "accuracy", str(model)]) in (0, 1)
    told = " ".join(capsys.readouterr().out.split())
    assert "by its receipt" not in told and "they were changed since" in told


def test_a_cache_that_a_policy_chose_counts_too(original: Path, cache_dir: Path) -> None:
    loaded = load(original, cache_dir=cache_dir)
    assert not _online(Options(str(original)), loaded).changed
    loaded.cache_spec = parse_cache("int8")
    assert _online(Options(str(original)), loaded).changed, "it is not served as it is stored"


def test_sums() -> None:
    def loss(kl: float | None, agree: float, ratio: float) -> dict[str, object]:
        bounds = {"low": None if kl is None else kl / 2, "high": None if kl is None else 2 * kl}
        return {"perplexity": {}, "kl": {"mean": kl, **bounds}, "top1_agreement": {"value": agree, "low": agree, "high": 1.0},
                "perplexity_ratio": {"value": ratio, "low": ratio, "high": ratio}, "broken_tokens": 0, "tokens": 5, "windows": 1, "context": 6, "blocks": 1}

    before = Receipt("measured", loss=loss(0.04, 0.9, 1.1), text={"name": "t"})
    both = joined(before, loss(0.01, 0.95, 1.02))
    assert both["kl"]["mean"] == pytest.approx(0.09) and both["kl"]["low"] == 0.02 and both["kl"]["high"] == pytest.approx(0.18)
    assert both["top1_agreement"]["value"] == pytest.approx(0.85) and both["perplexity_ratio"]["value"] == pytest.approx(1.122)
    assert joined(before, loss(0.0, 1.0, 1.0))["kl"]["mean"] == pytest.approx(0.04), "nothing on top is the receipt's number"
    assert joined(before, loss(None, 0.9, 1.0))["kl"]["mean"] is None
    assert room_for(0.09, before, apart=True) == pytest.approx(0.01) and room_for(0.09, before, apart=False) == pytest.approx(0.05)
    assert room_for(0.01, Receipt("exact"), apart=False) == 0.01


def test_evaluate_and_generate_say_which_cache(original: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = [str(original), "--quantization", "8bit", "--kv-cache", "auto", "--max-kl", "0.001"]
    assert main(["evaluate", *how, "--text", "receipt", "--json"]) == 0
    cache = json.loads(capsys.readouterr().out)["kv_cache"]
    assert sorted(layer for layers in cache["layers"].values() for layer in layers) == [0, 1, 2, 3, 4]
    assert cache["bytes_per_token"] < cache["bytes_with_bf16"] and 0 <= cache["kl"] <= cache["allowed"] == 0.001 and cache["tokens"] == 208
    assert main(["evaluate", *how, "--text", "receipt"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{cache['bytes_per_token']} bytes per token instead of {cache['bytes_with_bf16']}; KL" in told and "in layers" in told
    assert main(["generate", *how, "Once", "--max-tokens", "1"]) == 0
    told = capsys.readouterr().err
    assert "was not measured; --receipt does it" in told and "bytes per token instead of" in told
    for option in ("--receipt", "--no-receipt"):
        assert main(["generate", *how, "Once", "--max-tokens", "1", option]) == 0
        assert "quality: KL 0.0" in capsys.readouterr().err, "measured once, then known"
