"""Truncated, corrupted and hostile files: one clear line that names file and tensor, exit code 2, no allocation beyond the file."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from octavo.checkpoints import codecs, open_checkpoint
from octavo.cli import main
from octavo.errors import OctavoError

from .checkpoint_files import write_gguf

Q = "model.layers.0.self_attn.q_proj.weight"


def refusal(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `octavo inspect` says about a broken file: checked to be one line and status 2, in memory of the file's order."""
    codecs()  # their modules are imported once, which is not the file's doing
    tracemalloc.start()
    with pytest.raises(OctavoError):
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(f.stat().st_size for f in path.rglob("*")) if path.is_dir() else path.stat().st_size
    assert peak < 4 * size + (1 << 20), f"{peak} bytes for a model of {size}"
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("octavo: ") and error.count("\n") == 1
    return error


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        described = json.loads(data[8 : 8 + length])
        change(described)
        text = json.dumps(described).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return apply


SAFETENSORS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "model.safetensors: is empty"),
    "seven bytes": (lambda d: d[:7], "model.safetensors: is too short"),
    "cut in the header": (lambda d: d[:100], "model.safetensors: the header claims"),
    "cut in the data": (lambda d: d[:-1], "model.safetensors: tensor 'model."),
    "huge header": (lambda d: b"\xff" * 8 + d[8:], "the header claims 18446744073709551615 bytes"),
    "no JSON": (lambda d: d[:8] + b"\xff" * 50 + d[58:], "header: is not JSON"),
    "deep JSON": (lambda d: struct.pack("<Q", 100_000) + b"[" * 100_000, "header: JSON is nested deeper"),
    "a list": (lambda d: struct.pack("<Q", 2) + b"[]", "header: JSON holds list"),
    "twice": (lambda d: struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "header: JSON names 'a' twice"),
    "type": (header(lambda h: h[Q].update(dtype="F33")), f"tensor '{Q}' has the unknown type 'F33'"),
    "shape": (header(lambda h: h[Q].update(shape=[-8, 8])), f"tensor '{Q}' has no proper shape"),
    "shape of floats": (header(lambda h: h[Q].update(shape=[8.0, 8])), f"tensor '{Q}' has no proper shape"),
    "huge shape": (header(lambda h: h[Q].update(shape=[2**61, 2**61])), f"tensor '{Q}' of type F32"),
    "many dimensions": (header(lambda h: h[Q].update(shape=[1] * 1000)), f"tensor '{Q}' has no proper shape"),
    "offsets": (header(lambda h: h[Q].update(data_offsets=[0, 2**60])), f"tensor '{Q}' lies at bytes 0 to"),
    "offsets backwards": (header(lambda h: h[Q].update(data_offsets=[256, 0])), f"tensor '{Q}' lies at"),
    "overlap": (header(lambda h: h[Q].update(data_offsets=[4, 260])), "overlaps tensor"),
    "not described": (header(lambda h: h.update({Q: 7})), f"tensor '{Q}' has no description"),
    "another shape": (header(lambda h: h[Q].update(shape=[4, 16])), f"tensor '{Q}' has shape [4, 16], the config asks for [8, 8]"),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = SAFETENSORS[case]
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    error = refusal(folder, capsys)
    assert expected in error and "model.safetensors" in error


def test_missing_layers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert "num_hidden_layers is 1000000000, the weights have 1 layers" in refusal(folder, capsys)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hidden_size": "8"}', '{"hidden_size": 1' + "0" * 5000 + "}", "\x00", '{"a":' * 5000])
def test_config(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "config.json").write_text(text if "hidden_size" not in text else text.replace("{", '{"model_type": "llama", ', 1))
    assert "config" in refusal(folder, capsys)


@pytest.mark.parametrize("kind", [{"a": 1}, ["llama"], 7, None])
def test_a_model_type_that_is_no_name(kind: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    assert Q in open_checkpoint(folder).tensors


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_codes_of_any_number_of_dimensions(shape: tuple[int, ...], folder: Path) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    save_file({"mask": array}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert np.array_equal(open_checkpoint(folder).read("mask").dequantize(), array)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(kind: str, bad: float, folder: Path) -> None:
    import ml_dtypes

    dtype = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}[kind]
    tensors = {name: array.astype(dtype) for name, array in load_file(folder / "model.safetensors").items()}
    tensors[Q][3, 5] = bad
    save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with pytest.raises(OctavoError, match=rf"model\.safetensors: tensor '{Q}' holds NaN or infinity") as caught:
        checkpoint.read(Q)
    assert caught.value.exit_code == 2
    checkpoint.read("model.layers.0.self_attn.o_proj.weight")


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "llama", "Q8_0")
    checkpoint = open_checkpoint(path)
    _, start = checkpoint._places["model.layers.1.mlp.up_proj.weight"]  # type: ignore[attr-defined]
    data = bytearray(path.read_bytes())
    data[start + 34 : start + 36] = b"\x00\x7c"
    path.write_bytes(data)
    with pytest.raises(OctavoError, match=r"m\.gguf: tensor 'model\.layers\.1\.mlp\.up_proj\.weight' holds NaN or infinity"):
        open_checkpoint(path).read("model.layers.1.mlp.up_proj.weight")


def patch(after: bytes, skip: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrites bytes at `skip` after the first place of `after`."""
    def apply(data: bytes) -> bytes:
        at = data.index(after) + len(after) + skip
        return data[:at] + value + data[at + len(value) :]

    return apply


HUGE = struct.pack("<Q", 2**62)
UP = b"blk.0.ffn_up.weight"
GGUF: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda d: b"", "is empty"),
    "magic": (lambda d: b"GGML" + d[4:], "is no GGUF file: it begins with 'GGML'"),
    "version 1": (patch(b"GGUF", 0, struct.pack("<I", 1)), "has GGUF version 1"),
    "big-endian": (patch(b"GGUF", 0, struct.pack(">I", 3)), "is a big-endian GGUF file"),
    "tensors": (patch(b"GGUF", 4, HUGE), "claims 4611686018427387904 tensors"),
    "pairs": (patch(b"GGUF", 12, HUGE), "claims 4611686018427387904 metadata pairs"),
    "key": (patch(b"GGUF", 20, HUGE), "holds a metadata key of 4611686018427387904 bytes"),
    "string": (patch(b"general.architecture", 4, HUGE), "'general.architecture' claims 4611686018427387904 bytes"),
    "array": (patch(b"tokenizer.ggml.scores", 8, HUGE), "'tokenizer.ggml.scores' claims 4611686018427387904 numbers"),
    "strings": (patch(b"tokenizer.ggml.tokens", 8, HUGE), "'tokenizer.ggml.tokens' claims 4611686018427387904 entries"),
    "type of value": (patch(b"general.architecture", 0, struct.pack("<I", 99)), "'general.architecture' has the unknown type 99"),
    "dimensions": (patch(UP, 0, struct.pack("<I", 2**31)), "tensor 'blk.0.ffn_up.weight' has 2147483648 dimensions"),
    "shape": (patch(UP, 4, HUGE), "tensor 'blk.0.ffn_up.weight' needs bytes"),
    "no width": (patch(UP, 4, bytes(8)), "tensor 'blk.0.ffn_up.weight' has the shape"),
    "type": (patch(UP, 20, struct.pack("<I", 77)), "tensor 'blk.0.ffn_up.weight' has the unknown type 77"),
    "offset": (patch(UP, 24, HUGE), "tensor 'blk.0.ffn_up.weight' needs bytes"),
    "unaligned": (patch(UP, 24, struct.pack("<Q", 7)), "tensor 'blk.0.ffn_up.weight' begins at 7"),
    "overlap": (patch(UP, 24, struct.pack("<Q", 0)), "overlaps tensor"),
    "cut in the data": (lambda d: d[:-100_000], "tensor 'blk.1."),
    "cut in the metadata": (lambda d: d[:200], "m.gguf: "),
    "heads": (patch(b"llama.attention.head_count", 4, struct.pack("<I", 0)), "without heads"),
    "width": (patch(b"llama.embedding_length", 4, struct.pack("<I", 512)), "has shape [40, 256], the config asks for [40, 512]"),
    "layers": (patch(b"llama.block_count", 4, struct.pack("<I", 10**9)), "num_hidden_layers is 1000000000, the weights have 2 layers"),
}


@pytest.mark.parametrize("case", GGUF)
def test_gguf(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = GGUF[case]
    path = write_gguf(tmp_path / "m.gguf", "llama", tokenizer="llama")
    path.write_bytes(change(path.read_bytes()))
    error = refusal(path, capsys)
    assert expected in error and "m.gguf" in error


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"model": {"type": "BPE"}}',
                                    '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 9}, "merges": ["b c"]}}'])
def test_tokenizer(damage: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(damage)
    with pytest.raises(OctavoError, match=r"tokenizer\.json: is no tokenizer"):
        open_checkpoint(folder).tokenizer_files()


def test_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(OctavoError, match=r"tokenizer\.json: is missing\. fetch the model again"):
        open_checkpoint(folder).tokenizer_files()
