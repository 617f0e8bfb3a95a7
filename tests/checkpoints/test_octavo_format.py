"""Octavo's own format: mapped without copies, valid safetensors, whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from octavo import layouts, schemes
from octavo.checkpoints import _octavo_writer, open_checkpoint
from octavo.checkpoints.octavo import OctavoCheckpoint, OctavoWriter
from octavo.errors import CheckpointError
from octavo.qtensor import QTensor, quantize

NAMES = ["W8A8", "W4g64A8", "WNF4", "W4g64zA16", "W16", "W32", "W8tA16"]


def write(source: Path, target: Path, manifest: dict[str, object] | None = None) -> Path:
    checkpoint = open_checkpoint(source)
    with OctavoWriter(target, checkpoint.config, {"default": "W8A8C16", "overrides": []}, manifest or {"source": checkpoint.content_key()}) as writer:
        for i, (name, info) in enumerate(checkpoint.tensors.items()):
            values = checkpoint.read(name).dequantize()
            if len(info.shape) == 2:
                writer.add_packed(name, layouts.pack(quantize(values, schemes.parse(NAMES[i % len(NAMES)]).weight)))
            else:
                writer.add_array(name, values)
        return writer.finish(checkpoint.tokenizer_files())


def test_round_trip(tiny_model: Path, tmp_path: Path) -> None:
    source, copy = open_checkpoint(tiny_model), open_checkpoint(write(tiny_model, tmp_path / "copy"))
    assert isinstance(copy, OctavoCheckpoint) and copy.codec == "octavo"
    assert copy.plan == {"default": "W8A8C16", "overrides": []} and copy.manifest == {"source": source.content_key()}
    assert set(copy.tensors) == set(source.tensors)
    for i, (name, info) in enumerate(source.tensors.items()):
        values = source.read(name).dequantize()
        packed = copy.packed(name)
        if len(info.shape) == 1:
            assert packed is None
            np.testing.assert_array_equal(copy.read(name).dequantize(), values)
            continue
        expected = quantize(values, schemes.parse(NAMES[i % len(NAMES)]).weight)
        assert packed is not None and packed.blob.ctypes.data % 64 == 0
        assert not packed.blob.flags.owndata and not packed.blob.flags.writeable
        assert packed.blob.nbytes == packed.meta.nbytes == copy.tensors[name].nbytes
        np.testing.assert_array_equal(packed.blob, layouts.pack(expected).blob)
        np.testing.assert_array_equal(copy.read(name).dequantize(), expected.dequantize())
        np.testing.assert_array_equal(copy.read(name, slice(5, 40)).dequantize(), expected.dequantize()[5:40])
    ours, theirs = copy.tokenizer_files(), source.tokenizer_files()
    assert ours["tokenizer"].to_str() == theirs["tokenizer"].to_str()
    assert (ours["config"], ours["generation"]) == (theirs["config"], theirs["generation"])


def permuted(rows: int, k: int, order: bool, factors: bool) -> QTensor:
    rng = np.random.default_rng(k)
    q = quantize(rng.standard_normal((rows, k)).astype(np.float32), schemes.parse("W4g32").weight)
    return replace(q, order=rng.permutation(k).astype(np.int32) if order else None,
                   factors=rng.uniform(0.5, 2, k).astype(np.float32) if factors else None)


def write_permuted(folder: Path) -> dict[str, QTensor]:
    tensors = {"a.weight": permuted(40, 97, True, True), "b.weight": permuted(16, 64, True, False), "c.weight": permuted(7, 33, False, True)}
    with OctavoWriter(folder, {}, {}, {}) as writer:
        for name, q in tensors.items():
            writer.add_packed(name, layouts.pack(q))
        writer.finish({})
    return tensors


def test_order_and_factors_of_inputs_are_kept(tmp_path: Path) -> None:
    tensors = write_permuted(tmp_path / "copy")
    copy = open_checkpoint(tmp_path / "copy")
    assert isinstance(copy, OctavoCheckpoint) and set(copy.tensors) == set(tensors)
    for name, q in tensors.items():
        packed, back = copy.packed(name), copy.read(name)
        assert packed is not None
        for one, other in ((packed.order, q.order), (packed.factors, q.factors), (back.order, q.order), (back.factors, q.factors)):
            assert (one is None) == (other is None) and (one is None or np.array_equal(one, other))
        np.testing.assert_array_equal(back.dequantize(), q.dequantize())
        np.testing.assert_array_equal(copy.read(name, slice(3, 7)).dequantize(), q.dequantize()[3:7])


@pytest.mark.parametrize(("change", "match"), [
    ({"a.weight": {"order": "a.weight.factors"}}, "no proper 'order'"), ({"a.weight": {"order": "nothing"}}, "no proper 'order'"),
    ({"a.weight": {"rows": "a.weight.order"}}, "no proper 'rows'"), ({"x": {"order": "a.weight.order"}}, "no proper 'order'"),
    ({"b.weight": {"order": "a.weight.order"}}, "no proper 'order'"), ({"a.weight": 3}, "no proper"), ({"a.weight": {"order": "a.weight"}}, "no proper"),
])
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, object], match: str) -> None:
    write_permuted(tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["columns"].update(change)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path / "copy")


def test_an_order_that_is_none_is_refused(tmp_path: Path) -> None:
    write_permuted(tmp_path / "copy")
    copy = open_checkpoint(tmp_path / "copy")
    assert isinstance(copy, OctavoCheckpoint)
    packed = copy.packed("a.weight")
    assert packed is not None and packed.order is not None and packed.factors is not None
    file = tmp_path / "copy" / "model.safetensors"
    content = file.read_bytes()
    wrong = packed.order.copy()
    wrong[0] = 1000000
    for array, bad in ((packed.order, wrong.tobytes()), (packed.factors, np.full_like(packed.factors, np.nan).tobytes())):
        at = content.find(array.tobytes())
        assert at > 0
        file.write_bytes(content[:at] + bad + content[at + len(bad) :])
        with pytest.raises(CheckpointError, match="holds no"):
            open_checkpoint(tmp_path / "copy")


def test_it_is_a_safetensors_file(tiny_model: Path, tmp_path: Path) -> None:
    folder = write(tiny_model, tmp_path / "copy")
    copy = open_checkpoint(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        assert set(file.keys()) == set(copy.tensors)
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_array_equal(file.get_tensor(name), copy.packed(name).blob)  # type: ignore[attr-defined]
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "octavo" and config["model_type"] == "llama"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "generation_config.json", "manifest.json", "model.safetensors",
                                                        "tokenizer.json", "tokenizer_config.json"]


def test_many_tensors_make_shards(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_octavo_writer, "SHARD", 50_000)
    folder = write(tiny_model, tmp_path / "copy")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    copy, source = open_checkpoint(folder), open_checkpoint(tiny_model)
    assert isinstance(copy, OctavoCheckpoint) and set(copy.tensors) == set(source.tensors)
    assert all(p.blob.ctypes.data % 64 == 0 for name in copy.tensors if (p := copy.packed(name)))
    for file in files:
        with safe_open(file, "np") as opened:
            assert opened.keys()


def test_header_room_is_never_exceeded(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_octavo_writer, "HEADER", 4096)
    source = open_checkpoint(tiny_model)
    with OctavoWriter(tmp_path / "copy", source.config, {}, {}) as writer:
        for i in range(100):
            writer.add_array(f"tensor.{'x' * 50}.{i}", np.full(4, i, np.float32))
        writer.finish({})
    copy = open_checkpoint(tmp_path / "copy")
    assert len(copy.tensors) == 100 and len(list((tmp_path / "copy").glob("*.safetensors"))) > 4
    assert all((copy.read(f"tensor.{'x' * 50}.{i}").dequantize() == i).all() for i in range(100))


def test_a_failure_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_model)
    with pytest.raises(RuntimeError), OctavoWriter(tmp_path / "copy", source.config, {}, {}) as writer:
        writer.add_packed("x", layouts.pack(quantize(np.ones((16, 64), np.float32), schemes.parse("W8A8").weight)))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_ignored_and_cleared(tiny_model: Path, tmp_path: Path) -> None:
    program = f"""
import os
from octavo.checkpoints.octavo import OctavoWriter
import numpy as np
writer = OctavoWriter({str(tmp_path / "copy")!r}, {{}}, {{}}, {{}})
writer.add_array("x", np.ones(4, np.float32))
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60, env={**os.environ, "PYTHONPATH": str(Path(layouts.__file__).parents[1])})
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".copy.octavo-tmp-")
    write(tiny_model, tmp_path / "other")
    assert left.exists(), "too young to be called abandoned"
    os.utime(left, (0, 0))
    write(tiny_model, tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "other"]


def test_a_living_writer_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    source = open_checkpoint(tiny_model)
    with OctavoWriter(tmp_path / "slow", source.config, {}, {}) as slow:
        (hidden,) = tmp_path.iterdir()
        os.utime(hidden, (0, 0))
        write(tiny_model, tmp_path / "fast")
        assert hidden.exists()
        slow.add_array("x", np.ones(4, np.float32))
        slow.finish({})
    assert open_checkpoint(tmp_path / "slow").read("x").dequantize().sum() == 4


def test_many_writers_of_the_same(tiny_model: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            write(tiny_model, tmp_path / "copy")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and [p.name for p in tmp_path.iterdir()] == ["copy"]
    assert len(open_checkpoint(tmp_path / "copy").tensors) == 47


def test_other_contents_replace_and_old_maps_stay_readable(tiny_model: Path, tmp_path: Path) -> None:
    old = open_checkpoint(write(tiny_model, tmp_path / "copy", {"version": 1}))
    assert isinstance(old, OctavoCheckpoint)
    blob = old.packed("model.embed_tokens.weight").blob  # type: ignore[union-attr]
    before = blob.copy()
    new = open_checkpoint(write(tiny_model, tmp_path / "copy", {"version": 2}))
    assert isinstance(new, OctavoCheckpoint) and new.manifest == {"version": 2}
    np.testing.assert_array_equal(blob, before)
    assert [p.name for p in tmp_path.iterdir()] == ["copy"]


def test_a_disk_that_refuses_is_one_line(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*--cache-dir"):
        OctavoWriter(tmp_path / "file" / "copy", {}, {}, {})


@pytest.mark.parametrize("change", [
    {"n": 17}, {"k": 10**12}, {"n": -16}, {"n": 0}, {"store": "codes9"}, {"group": 1}, {"groups": 5}, {"kpad": 0}, {"layout": "panel99"}, {"spec": {}},
    {"scale_type": "fp64"}, {"spec": {"format": "int3", "granularity": "channel"}}, {"has_zeros": True}, {"table": [1.0]}, {"k": "64"}, {"n": 1.5},
])
def test_descriptions_that_do_not_fit_their_blob(change: dict[str, object], tiny_model: Path, tmp_path: Path) -> None:
    folder = write(tiny_model, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    name = "model.embed_tokens.weight"
    config["quantization_config"]["tensors"][name].update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor '{name}'"):
        open_checkpoint(folder)
