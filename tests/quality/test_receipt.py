"""Receipts: what they say is what evaluate says, and what was tampered with is refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from planting import LIMIT, PLANTED, plant

from octavo.checkpoints import open_checkpoint
from octavo.cli import main
from octavo.cli.serve import Options, run
from octavo.conversion import convert
from octavo.errors import OctavoError, QualityError
from octavo.evaluate import evaluate
from octavo.loading import load
from octavo.quality.online import Online
from octavo.quality.own_text import OWN_TEXT
from octavo.quality.receipt import NAME, Receipt, beside, read_receipt
from octavo.quality.receipt_of import CONTEXT, WINDOWS, receipt_of


@pytest.fixture
def original(shared_data: Path) -> Path:
    """A real Llama of 0.94 M parameters whose widths suit groups of 32."""
    return shared_data / "models" / "babyllama105-hf"


@pytest.fixture
def quantized(original: Path, tmp_path: Path) -> Path:
    """The same in 4 bits with zero points, as AWQ writes them."""
    out = tmp_path / "quantized"
    convert(original, out, to="awq", quantization="W4g32z")
    return out


def test_equals_evaluate_on_the_same_text(original: Path, quantized: Path) -> None:
    receipt = receipt_of(original, quantized, settings={"method": "rtn"}, calibration={"name": "none"})
    assert receipt == read_receipt(quantized / NAME)
    done = evaluate(lambda: load(quantized, use_cache=False), lambda: load(original, use_cache=False), OWN_TEXT, context=CONTEXT, windows=WINDOWS)
    assert done.comparison is not None and receipt.loss == done.comparison.to_json() and receipt.text["sha256"] == OWN_TEXT.sha256
    longer = evaluate(lambda: load(quantized, use_cache=False), lambda: load(original, use_cache=False), OWN_TEXT, context=CONTEXT)
    assert longer.comparison is not None and longer.comparison.kl.low < receipt.loss["kl"]["high"]
    assert receipt.status == "measured" and receipt.loss["tokens"] == (CONTEXT - 1) * WINDOWS
    errors = [found["weight"] for found in receipt.weights.values()]
    assert len(errors) >= 35 and all(error is not None and 0.02 < error < 0.2 for error in errors)
    assert set(receipt.result["sha256"]) and set(receipt.original["sha256"]) and receipt.versions["octavo"]


def test_verbs_agree(original: Path, quantized: Path, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str], cache_dir: Path) -> None:
    """evaluate --text receipt, and --receipt-text of one's own."""
    written = receipt_of(original, quantized)
    assert main(["evaluate", str(quantized), "--against", str(original), "--text", "receipt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in written.loss} == written.loss
    text = tmp_path / "own.txt"
    text.write_text((shared_data / "text" / "tinyshakespeare.txt").read_text()[:2000])
    assert main(["convert", str(original), str(tmp_path / "other"), "--to", "gptq", "--quantization", "W8g32", "--receipt-text", str(text)]) == 0
    receipt = read_receipt(tmp_path / "other" / NAME)
    assert receipt is not None and receipt.text["name"] == "own.txt" and 0 < receipt.kl < written.kl


def test_quantize_writes_one(original: Path, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "calibration.txt"
    text.write_text((shared_data / "text" / "tinyshakespeare.txt").read_text()[:8000])
    assert main(["quantize", str(original), str(tmp_path / "out"), "--scheme", "W4g32", "--method", "gptq", "--data", str(text), "--sequences", "8",
                 "--tokens", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["receipt"]
    receipt = read_receipt(tmp_path / "out" / NAME)
    assert receipt is not None and receipt.to_json() == found and 0 < receipt.kl < LIMIT
    assert receipt.calibration is not None and receipt.calibration["sequences"] == 8 and len(receipt.calibration["sha256"]) == 64
    assert all(set(errors) == {"weight", "output"} for errors in receipt.weights.values()) and receipt.settings["method"]


def test_exact_needs_no_measurement(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tiny_model), str(tmp_path / "copy"), "--to", "safetensors"]) == 0
    receipt = read_receipt(tmp_path / "copy" / NAME)
    assert receipt is not None and receipt.status == "exact" and receipt.kl == 0.0 and "receipt: exact" in capsys.readouterr().out


def test_the_same_numbers_have_lost_the_same(original: Path, quantized: Path, tmp_path: Path) -> None:
    first = receipt_of(original, quantized, settings={"method": "rtn"})
    convert(quantized, tmp_path / "other", to="gptq")
    assert not (tmp_path / "other" / NAME).exists(), "a receipt does not travel by itself"
    second = receipt_of(quantized, tmp_path / "other", exact=True, settings={"to": "gptq"})
    assert second.loss == first.loss and second.original == first.original and second.result["format"] == "gptq"
    assert second.settings == {"method": "rtn", "converted": {"to": "gptq"}}


def test_convert_and_inspect_show_it(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small.gguf"
    assert main(["convert", str(tiny_model), str(out), "--to", "gguf:Q8_0", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["receipt"]
    assert written["status"] == "measured" and 0 < written["loss"]["kl"]["mean"] < 0.01 and beside(out).is_file()
    assert main(["inspect", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["receipt"]
    assert found["of_these_files"] and found["loss"] == written["loss"]
    assert main(["inspect", str(out)]) == 0 and "receipt: KL" in capsys.readouterr().out
    with open(out, "ab") as file:
        file.write(bytes(32))
    assert main(["inspect", str(out)]) == 0 and "these were changed since" in capsys.readouterr().out


def test_limits() -> None:
    measured = Receipt("measured", loss={"kl": {"mean": 0.1, "low": None, "high": None}, "broken_tokens": 0})
    measured.refuse_above(0.1, "m")
    with pytest.raises(QualityError, match=r"lost a KL of 0\.1 nats"):
        measured.refuse_above(0.099, "m")
    Receipt("exact").refuse_above(0.0, "m")
    with pytest.raises(QualityError, match="not measured: no memory"):
        Receipt("not measured", "no memory").refuse_above(9, "m")
    broken = Receipt("measured", loss={"kl": {"mean": None}, "broken_tokens": 3})
    assert broken.kl == math.inf
    with pytest.raises(QualityError, match="everything at 3 tokens"):
        broken.refuse_above(1e9, "m")


def test_files_that_are_no_receipts(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"format": 1}', '{"format": 1, "status": "measured"}', '{"format": 1, "status": "measured", "loss": {"kl": 3}}',
                    '{"format": 1, "status": "fine"}', '{"format": 1, "status": "exact", "extra": 1}', '{"format": 99, "status": "exact"}', "[" * 9999):
        (tmp_path / "r").write_text(content)
        assert read_receipt(tmp_path / "r") is None, content
    assert read_receipt(tmp_path / "missing") is None


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("when", ["before the receipt", "after the receipt"])
def test_what_was_planted_is_refused(original: Path, quantized: Path, kind: str, when: str, cache_dir: Path) -> None:
    if when == "after the receipt":
        assert receipt_of(original, quantized).kl < LIMIT
        plant(quantized, kind)
    else:
        plant(quantized, kind)
        receipt_of(original, quantized)
    for against in (None, str(original)):
        with pytest.raises(OctavoError) as refused:
            run(Options(str(quantized), port=0, max_kl=LIMIT, against=against))
        said = str(refused.value)
        assert refused.value.exit_code == 2
        assert any(part in said for part in ("more than the 0.5 of --max-kl", "they were changed since", "NaN or infinity")), said


def test_the_sound_one_is_not_refused(original: Path, quantized: Path, cache_dir: Path) -> None:
    receipt_of(original, quantized)
    Online(load(quantized), str(quantized), False).kept(sure=True).refuse_above(LIMIT, "m")  # type: ignore[union-attr]


def test_online_is_measured_once(tiny_model: Path, tmp_path: Path) -> None:
    def online(cache: str = "bf16") -> Online:
        loaded = load(tiny_model, quantization="W4g32A16", kv_cache=cache, cache_dir=tmp_path)
        return Online(loaded, str(tiny_model), True, cache_dir=tmp_path)

    first = online()
    assert first.kept() is None
    receipt = first.measure(threads=1)
    assert receipt.status == "measured" and 0.01 < receipt.kl < LIMIT
    assert online().kept() == receipt == online().kept(sure=True), "free on later starts"
    assert online("int8").kept() is None, "another cache format is another loss"
    assert replace(online(), against=str(tmp_path / "other")).kept() is None
    copy = next((tmp_path / "models").iterdir())
    panels = next(copy.glob("*.safetensors"))
    content = bytearray(panels.read_bytes())
    content[-100] ^= 0xFF
    panels.write_bytes(content)
    assert online().kept() == receipt and online().kept(sure=True) is None, "--max-kl looks at the files"


def test_online_says_why_not(tiny_model: Path, quantized: Path, tmp_path: Path) -> None:
    loaded = load(tiny_model, use_cache=False)
    as_stored = Online(loaded, str(tiny_model), False).kept()
    assert as_stored is not None and as_stored.status == "exact"
    without = Online(load(quantized, use_cache=False), str(quantized), False).kept()
    assert without is not None and without.status == "not measured" and "--against" in without.reason
    gone = Online(loaded, str(tmp_path / "gone"), True).measure()
    assert gone.status == "not measured" and "no such file" in gone.reason
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    assert open_checkpoint(other) is not None and "mamba" in Online(loaded, str(other), True).measure().reason
