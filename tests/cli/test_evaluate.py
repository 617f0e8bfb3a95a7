"""`octavo evaluate` on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.evaluate import kl_by_part
from octavo.loading import load
from octavo.quality import compare, windows_of


@pytest.fixture
def text(shared_data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stories.jsonl"
    path.write_text("".join((shared_data / "text" / "tinystories-a.jsonl").read_text().splitlines(keepends=True)[:40]))
    return path


def evaluate(capsys: pytest.CaptureFixture[str], *options: object) -> Any:
    assert main(["evaluate", *map(str, options), "--no-cache", "--json"]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_alone(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path) -> None:
    found = evaluate(capsys, tiny_model, "--text", text, "--context", 128, "--windows", 10)
    assert set(found["perplexity"]) == {"value", "low", "high"} and 1 < found["perplexity"]["low"] < found["perplexity"]["value"] < 20
    assert (found["windows"], found["context"], found["text"]) == (10, 128, "stories.jsonl") and "kl" not in found


def test_against_its_original(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path) -> None:
    options = (tiny_model, "--quantization", "W4g32A16", "--against", tiny_model, "--text", text, "--context", 128, "--windows", 16)
    found = evaluate(capsys, *options, "--by-layer", "--long", "256,64k", "--plots", tmp_path / "plots")
    kl = found["kl"]
    assert 0 < kl["low"] < kl["mean"] < kl["high"] and kl["median"] < kl["p99"] < kl["max"] and kl["mean"] > 0.01
    assert 0.5 < found["top1_agreement"]["value"] < 1 and found["perplexity_ratio"]["low"] > 1
    assert found["perplexity"]["value"] / found["original_perplexity"]["value"] == pytest.approx(found["perplexity_ratio"]["value"])
    assert found["probability_shift"]["mean"]["value"] < 0 < found["probability_shift"]["rms"]["value"]
    assert found["kl_by_position"][-1]["to"] == 128 and found["original"]["plan"].startswith("W32")
    parts = {part["part"]: part["kl"]["value"] for part in found["kl_by_layer"]}
    assert all(parts[f"layer {i}"] > 0 for i in range(5)) and parts["model.norm.weight"] == 0.0
    assert sum(parts.values()) == pytest.approx(kl["mean"], rel=0.6), "small losses add up"
    reached, beyond = found["long"]
    assert reached["kl_at_end"]["value"] > 0 and [task["task"] for task in reached["model"]] == ["copy", "needle"] and "original" in reached
    assert beyond["note"] == "the model takes 512 tokens"
    copy, needle = reached["difference"]
    assert copy["tokens"]["low"] <= copy["tokens"]["value"] <= copy["tokens"]["high"] and needle["exact"]["low"] < 0 < needle["exact"]["high"]
    assert reached["windows"] == 8 and "note" not in reached
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"kl-by-position.png", "kl-of-tokens.png", "kl-by-layer.png"}
    through_a_file = evaluate(capsys, *options, "--one-at-a-time", "--by-layer")
    assert through_a_file["kl"] == kl and "kl_by_layer" not in through_a_file and len(through_a_file["notes"]) == 1


def test_a_against_a_is_zero(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path) -> None:
    found = evaluate(capsys, tiny_model, "--against", tiny_model, "--text", text, "--context", 128, "--windows", 4)
    assert found["kl"]["max"] == 0.0 and found["top1_agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["perplexity_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_table(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path) -> None:
    assert main(["evaluate", str(tiny_model), "--against", str(tiny_model), "--quantization", "8bit", "--text", str(text), "--context", "64",
                 "--windows", "3", "--no-cache"]) == 0
    out = capsys.readouterr().out
    assert "top-1 agreement" in out and "perplexity ratio" in out and "95% interval" in out


def test_a_needle_that_does_not_fit_leaves_the_copies(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path) -> None:
    options = (tiny_model, "--against", tiny_model, "--text", text, "--context", 64, "--windows", 2, "--long", "64", "--long-windows", 2)
    (one,) = evaluate(capsys, *options)["long"]
    assert [task["task"] for task in one["model"]] == ["copy"] == [task["task"] for task in one["difference"]]
    assert one["note"] == "2 windows: wide intervals; no needle task: 64 tokens do not hold the needle and its question, or the text is shorter"
    assert one["kl"] == {"value": 0.0, "low": 0.0, "high": 0.0} and one["difference"][0]["exact"]["value"] == 0.0
    assert main(["evaluate", *map(str, options), "--no-cache"]) == 0
    assert "; paired difference 0 (-0.46197 to 0.46197) exact, 0 (" in capsys.readouterr().out


def test_models_of_other_lengths(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, tmp_path: Path) -> None:
    """The smaller context is taken, whichever of the two has it; one that was asked for and does not fit is refused with its name."""
    short = tmp_path / "short"
    shutil.copytree(tiny_model, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 96}))
    for model, original in ((short, tiny_model), (tiny_model, short)):
        found = evaluate(capsys, model, "--against", original, "--text", text, "--windows", 2, "--long", "128")
        assert (found["context"], found["kl"]["max"]) == (96, 0.0) and found["long"][0]["note"] == "the model takes 96 tokens"
    assert evaluate(capsys, short, "--against", tiny_model, "--text", text, "--windows", 2, "--one-at-a-time")["context"] == 96
    assert main(["evaluate", str(short), "--against", str(tiny_model), "--text", str(text), "--context", "128", "--no-cache"]) == 2
    assert "--context: short takes 96 tokens, not 128" in capsys.readouterr().err


def test_models_of_other_words_are_refused(capsys: pytest.CaptureFixture[str], tiny_model: Path, text: Path, shared_data: Path) -> None:
    other = shared_data / "models" / "babyllama105-hf"
    assert main(["evaluate", str(tiny_model), "--against", str(other), "--text", str(text), "--no-cache"]) == 2
    said = capsys.readouterr().err
    assert "512 tokens in its vocabulary" in said and "105" in said and "made of" in said


@pytest.mark.parametrize(("options", "what"), [
    ((), "no text to predict"), (("--text", "missing.txt"), "missing.txt: cannot read the text: No such file or directory."),
    (("--text", "x", "--long", "4q"), "cannot read '4q'"), (("--text", "x", "--by-layer"), "--by-layer: shows what was lost"),
    (("--text", "x", "--plots", "x"), "--plots: shows what was lost"), (("--tasks", "piqa", "--long", "1k"), "--long: needs a text"),
    (("--text", "x", "--long-windows", "3"), "--long-windows: counts"),
])
def test_refusals(capsys: pytest.CaptureFixture[str], tiny_model: Path, options: tuple[str, ...], what: str) -> None:
    """At once: the text `x` is not even looked for."""
    assert main(["evaluate", str(tiny_model), *options]) == 2
    said = capsys.readouterr().err
    assert what in said and said.count("missing.txt") < 2


def test_parts_add_up_to_the_whole(tiny_model: Path, text: Path) -> None:
    """A model that differs from the original in one layer: that layer's loss is the model's, and no other has one."""
    original, other = (load(tiny_model, quantization=name, use_cache=False) for name in ("16bit", "W4g32A16"))
    model = original.with_tensors_of(other, {name for name in original.bound.weights if ".layers.2." in name})
    windows = windows_of(original, json.loads(text.read_text().splitlines()[0])["text"] * 3, context=64, windows=2)
    parts = {part.part: part.kl.value for part in kl_by_part(original, model, windows)}
    assert parts.pop("layer 2") == compare(original, model, windows).kl.value > 0
    assert set(parts.values()) == {0.0}
