"""What `octavo quantize` guarantees: the same bytes for any number of threads, in every run, and after being killed; refusals before any work."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers as hf
from models.tiny import BASE, VOCABULARY, build

from octavo.checkpoints import open_checkpoint
from octavo.cli import main
from octavo.errors import CheckpointError, KernelError, UsageError
from octavo.qtensor import quantize as to_nearest
from octavo.quantize import Wish, quantize
from octavo.quantize.store import SUFFIX
from octavo.schemes import Plan

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    build(folder, hf.LlamaConfig(**{**BASE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS}))
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(3, VOCABULARY, (9, 40), dtype=np.int32))
    return folder


@pytest.fixture(scope="module")
def wish(model: Path) -> Callable[..., Wish]:
    def make(scheme: str = "W4g32A16", method: str = "gptq", **changes: object) -> Wish:
        return Wish(**{"scheme": scheme, "method": method, "data": model / "ids.npy", "sequences": 9, "tokens": 40, **changes})  # type: ignore[arg-type]
    return make


def digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.fixture(scope="module")
def expected(model: Path, wish: Callable[..., Wish], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("expected") / "out"
    quantize(model, out, wish(), threads=1)
    return digest(out)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_runs_change_no_byte(threads: int, model: Path, wish: Callable[..., Wish], expected: str, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of work are cut without regard to threads: several of them here, which the tiny model needs a small CHUNK for."""
    report = quantize(model, tmp_path / "out", wish(), threads=threads)
    assert digest(tmp_path / "out") == expected and report.resumed == 0
    assert not list(tmp_path.glob(f".*{SUFFIX}"))
    assert report.written.bytes_before > 3 * report.written.bytes_after / 2
    assert len(report.errors) == 7 * LAYERS and max(report.errors.values()) < 0.02


KILLED = """
import sys
from pathlib import Path
from octavo.quantize import Wish, quantize
model = Path(sys.argv[1])
quantize(model, sys.argv[2], Wish("W4g32A16", "gptq", data=model / "ids.npy", sequences=9, tokens=40), threads=2,
         on_progress=lambda done, layers, seconds: print(done, flush=True))
"""


def test_a_killed_run_goes_on_to_the_same_bytes(model: Path, wish: Callable[..., Wish], expected: str, tmp_path: Path) -> None:
    """SIGKILL after one and after three layers, a random moment later: somewhere in a layer, in writing one, or in writing the model."""
    out = tmp_path / "out"
    moments = random.Random(5)
    for layers in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(model), str(out)], stdout=subprocess.PIPE, text=True,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert process.stdout is not None
        while (line := process.stdout.readline()) and int(line) < layers:
            pass
        time.sleep(moments.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert not out.exists() or digest(out) == expected
    found = list(tmp_path.glob(f".*{SUFFIX}/*.npz"))
    report = quantize(model, out, wish(), threads=1, overwrite=True)
    assert report.resumed == len(found) and (out.exists() or len(found) >= 3)
    assert digest(out) == expected


def test_another_wish_begins_anew(model: Path, wish: Callable[..., Wish], expected: str, tmp_path: Path) -> None:
    def stop(done: int, layers: int, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "out", wish("W3g32A16"), threads=1, on_progress=stop)
    assert list(tmp_path.glob(f".*{SUFFIX}/*.npz"))
    assert quantize(model, tmp_path / "out", wish(), threads=1).resumed == 0
    assert digest(tmp_path / "out") == expected


def test_what_is_written_is_what_was_rounded(model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    """Without calibration every written number is the nearest; kept weights are as stored; included ones in 8 bits."""
    quantize(model, tmp_path / "out", wish("W4g32A16", "rtn", data=None, keep=("*.1.self_attn.o_proj*",), include=("*lm_head*",)), threads=1)
    before, after = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    for name, info in before.tensors.items():
        plain = before.read(name).dequantize()
        if name.endswith("proj.weight") and ".1.self_attn.o_proj" not in name:
            plain = to_nearest(plain, Plan.parse("W4g32A16").default.weight).dequantize()
        elif name == "lm_head.weight":
            assert after.tensors[name].spec is not None and after.tensors[name].spec.format == "int8"
            plain = to_nearest(plain, after.tensors[name].spec).dequantize()
        assert np.array_equal(after.read(name).dequantize(), plain), (name, info)


@pytest.mark.parametrize(("changes", "to", "says"), [
    ({"scheme": "W4g36A16"}, "compressed-tensors", "no multiple of the group of 36"),
    ({"scheme": "W3g32A16"}, "awq", "awq cannot hold"),
    ({"scheme": "W16A16"}, "compressed-tensors", "nothing would be quantized"),
    ({"data": None}, "compressed-tensors", "needs calibration text"),
    ({"options": {"gptq.groups": "odd"}}, "compressed-tensors", "static, dynamic"),
    ({"options": {"damping": "1"}}, "compressed-tensors", "names no option"),
])
def test_refused_before_any_work(changes: dict[str, object], to: str, says: str, model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        quantize(model, tmp_path / "out", wish(**changes), to=to, threads=1)
    assert not list(tmp_path.iterdir())


def test_damaged_weights_are_named(model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "model"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][4, 7] = np.nan
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj"):
        quantize(broken, tmp_path / "out", wish(), threads=1)


def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache_dir: Path) -> None:
    options = ["--scheme", "W4g32A8", "--data", str(model / "ids.npy"), "--sequences", "4", "--tokens", "40", "--set", "gptq.passes=1", "--threads", "1"]
    assert main(["quantize", str(model), str(tmp_path / "out"), *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "gptq" and told["settings"]["method"]["passes"] == 1 and told["written"]["bytes_before"] > told["written"]["bytes_after"]
    assert main(["quantize", str(model), str(tmp_path / "out"), *options]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["scipy", "threadpoolctl"])
def test_a_missing_extra_is_told_in_one_line(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["quantize", str(model), str(tmp_path / "out"), "--scheme", "W4g32A16", "--data", str(model / "ids.npy")]) == 2
    assert capsys.readouterr().err == f"octavo: octavo quantize: needs {name}, which is not installed. pip install 'octavo[quantize]'\n"


def test_what_an_option_brings_is_refused_with_a_target_that_holds_it(model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    dynamic = wish(options={"gptq.groups": "dynamic"})
    with pytest.raises(UsageError, match="another --to"):
        quantize(model, tmp_path / "out", dynamic)
    assert quantize(model, tmp_path / "out", dynamic, to="gptq:act-order").resumed == LAYERS


def test_rtn_uses_text_that_a_transform_reads_anyway(model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    made = {}
    for name, options in (("known", {}), ("asked", {"rtn.importance": "mean_square"}), ("none", {"rtn.importance": "none"})):
        quantize(model, tmp_path / name, wish("W3g32zA16", "rtn", transforms=("awq",), options=options), threads=1)
        made[name] = digest(tmp_path / name)
    assert made["known"] == made["asked"] != made["none"]
    quantize(model, tmp_path / "alone", wish("W3g32zA16", "rtn"), threads=1)
    quantize(model, tmp_path / "without", wish("W3g32zA16", "rtn", data=None), threads=1)
    assert digest(tmp_path / "alone") == digest(tmp_path / "without")


def test_rtn_asks_the_serving_kernels_for_its_importance(model: Path, wish: Callable[..., Wish], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = wish("W3g32zA16", "rtn", options={"rtn.importance": "mean_square"})
    for threads in (1, 2):
        quantize(model, tmp_path / f"of-{threads}", asked, threads=threads)
    quantize(model, tmp_path / "plain", wish("W3g32zA16", "rtn"), threads=1)
    assert digest(tmp_path / "of-1") == digest(tmp_path / "of-2") != digest(tmp_path / "plain")

    def refused(*_: object, **__: object) -> None:
        raise KernelError("no such kernels", where="native")

    monkeypatch.setattr("octavo.quantize.run.load", refused)  # then by the forward in float32
    quantize(model, tmp_path / "float", asked, threads=1)
    assert digest(tmp_path / "float") != digest(tmp_path / "plain")


def test_gptq_says_when_the_damping_had_to_grow(model: Path, wish: Callable[..., Wish], tmp_path: Path) -> None:
    few = wish("W4g32A16", options={"gptq.damping": "0"}, sequences=1)  # fewer rows than inputs
    report = quantize(model, tmp_path / "out", few, threads=1)
    assert any("model.layers.0.self_attn.q_proj" in note and "damping had to grow from 0 to" in note for note in report.notes)
    assert not quantize(model, tmp_path / "usual", wish(), threads=1).notes
