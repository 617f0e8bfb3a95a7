"""`octavo inspect` on checkpoints of other tools: maker, schemes, true bits, the KV cache, and which engines load them, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.checkpoints import codecs, open_checkpoint
from octavo.cli import main
from octavo.inspect import facts_of, verdicts
from octavo.inspect._engines import ENGINES

from . import patients as p


def answers(path: Path) -> dict[str, tuple[str, str]]:
    checkpoint = open_checkpoint(path)
    return {verdict.engine: (verdict.answer, verdict.why) for verdict in verdicts(checkpoint, facts_of(checkpoint))}


def inspected(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


def test_symmetric_gptq_loads_everywhere_but_in_llamacpp(tmp_path: Path) -> None:
    found = answers(p.gptq(tmp_path / "m"))
    assert {name: answer for name, (answer, _) in found.items()} == {"vLLM": "yes", "SGLang": "yes", "transformers": "yes", "llama.cpp": "no"}
    assert "GGUF" in found["llama.cpp"][1] and "gptqmodel" in found["transformers"][1]


@pytest.mark.parametrize(("make", "engine", "why"), [
    (lambda d: p.gptq(d, sym=False), "vLLM", "zero points (sym is false)"),
    (lambda d: p.gptq(d, bits=3), "vLLM", "3 bits, it reads 4, 8"),
    (lambda d: p.pack_quantized(d, 3), "SGLang", "3 bits, it reads 4, 8"),
    (lambda d: p.plain(d), "llama.cpp", "GGUF only"),
])
def test_refusals_give_the_reason(make: Any, engine: str, why: str, tmp_path: Path) -> None:
    answer, reason = answers(make(tmp_path / "m"))[engine]
    assert answer == "no" and why in reason


def test_a_group_size_that_no_kernel_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(p, "GROUP", 16)
    answer, reason = answers(p.gptq(tmp_path / "m"))["vLLM"]
    assert answer == "no" and "groups of 16, its kernels take whole rows, 32, 64, 128" in reason


def test_an_unknown_model_is_not_judged(tmp_path: Path) -> None:
    assert answers(p.plain(tmp_path / "m", model_type="strange"))["vLLM"][0] == "unknown"


def test_gguf_types_decide(smollm2_path: Path) -> None:
    assert {answer for answer, _ in answers(smollm2_path).values()} == {"yes"}


def test_every_format_has_a_verdict_of_every_engine() -> None:
    for engine in ENGINES[:3]:
        assert codecs().keys() - {"nvfp4"} <= engine.formats.keys() | engine.refusals.keys(), engine.name
    assert all(engine.version and engine.checked for engine in ENGINES)


def test_what_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = p.fp8_static(tmp_path / "m")
    p.edit_json(path, "config.json", lambda c: c["quantization_config"].update(version="0.19.0") or c.update(auto_map={"AutoModel": "x.Y"}))
    text = inspected(path, capsys)
    assert "made by: compressed-tensors 0.19.0" in text and "LOADS IN" in text and "6 stored scales from 0.05 to 0.05" in text and "auto_map" in text
    found = json.loads(inspected(path, capsys, "--json"))
    main_class = found["classes"][0]
    assert found["scheme"] == main_class["scheme"] == "Wfp8tAfp8tsCfp8ts" and main_class["tensors"] == 21
    assert 8 < main_class["bits_per_weight"] < 8.01 and found["cache"] == "fp8ts" and found["cache_scales"]["tensors"] == 6
    assert found["loads_in"][0]["engine"] == "vLLM" and found["loads_in"][0]["source"]
    quantized = next(t for t in found["tensors"] if t["name"].endswith("q_proj.weight"))
    assert quantized["bits_per_number"] == pytest.approx(8.004, abs=0.01)


def test_code_of_the_config_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = p.plain(tmp_path / "m", auto_map={"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"}, trust_remote_code=True)
    (path / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert "never runs" in inspected(path, capsys)
    assert main(["doctor", "checkpoint", str(path)]) == 0
    from octavo.loading import load

    load(path, use_cache=False, threads=1)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = p.plain(tmp_path / "m")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    assert main(["inspect", str(path)]) == 2
    assert "pickled weights" in capsys.readouterr().err
