"""Writes Octavo's own checkpoints, so that readers see a whole one or none.

Everything goes into a hidden folder beside the target, is synced, and gets its name in one rename. Who dies halfway leaves a hidden folder
whose lock the system has released; the next writer clears it away. Two who write the same model at once both finish; the first rename
stands, the second finds the same manifest there and drops its copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError
from ..layouts import Packed
from ._json import read_object
from ._synced import sync_folder, write_synced

METHOD, VERSION = "octavo", 1
INPUT_SCALE = "input_scale"  # among what is said of a weight's columns
CACHE_SCALES = "cache_scales"
MANIFEST = "manifest.json"
MARK = ".octavo-tmp-"
HEADER = 1 << 18        # bytes kept free for a file's header, its length included; a multiple of 64
ENTRY = 160             # at most, besides the name: one tensor's line in the header
SHARD = 8 << 30         # a file that has grown so large is followed by another
ABANDONED_SECONDS = 60  # a hidden folder without a held lock may be this young and still be in its making


class OctavoWriter:
    """Packed weights, float32 arrays and tokenizer files into `folder`. Use as a context manager: an exception leaves nothing behind.

    config    the Hugging Face config of the source; gets a `quantization_config`
    plan      Plan.to_json()
    manifest  what the copy was made of: hash of the source, scheme, versions. Equal manifests mean equal contents.
    cache_scales   of static formats of the key-value cache: "model.layers.0.self_attn.k" (and ".v") -> one, or one for each head

    Raises CheckpointError where the disk refuses (full, read-only).
    """

    def __init__(self, folder: Path, config: dict[str, Any], plan: dict[str, Any], manifest: dict[str, Any],
                 cache_scales: Mapping[str, np.ndarray] | None = None) -> None:
        self._cache_scales = {name: np.asarray(scale, np.float32).reshape(-1).tolist() for name, scale in (cache_scales or {}).items()}
        self.folder = Path(folder).absolute()
        self.config, self.plan, self.manifest = config, plan, manifest
        self._metas: dict[str, Any] = {}
        self._columns: dict[str, dict[str, Any]] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._shards: list[_Shard] = []
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            clear_abandoned(self.folder.parent)
            self._temporary = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}{MARK}", dir=self.folder.parent))
            self._lock = (self._temporary / ".lock").open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise _refused(self.folder, error) from None

    def __enter__(self) -> OctavoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abort()

    def add_packed(self, name: str, packed: Packed, input_scale: float = 0.0) -> None:
        """A weight as the kernels read it; written at once, the blob may be dropped afterwards. Order and factors are kept until `finish`, as arrays are.
        input_scale: the stored one of static inputs, 0 for none."""
        self._metas[name] = packed.meta.to_json()
        for part, array, dtype in (("order", packed.order, "<i4"), ("factors", packed.factors, "<f4")):
            if array is not None:
                self._columns.setdefault(name, {})[part] = f"{name}.{part}"
                self._arrays[f"{name}.{part}"] = np.ascontiguousarray(array, dtype)
        if packed.rotation:
            self._columns.setdefault(name, {})["rotation"] = packed.rotation
        if input_scale:
            self._columns.setdefault(name, {})[INPUT_SCALE] = input_scale
        try:
            self._shard(name).append(name, packed.blob)
        except OSError as error:
            raise _refused(self.folder, error) from None

    def add_array(self, name: str, array: np.ndarray) -> None:
        """A small float32 array (norms, biases). Kept until `finish`, so that packed blobs stay aligned without gaps between them."""
        self._arrays[name] = np.ascontiguousarray(array, "<f4")

    def finish(self, tokenizer_files: dict[str, Any]) -> Path:
        """Write what is left (see Checkpoint.tokenizer_files), and give the folder its name. Returns it."""
        try:
            self._finish(tokenizer_files)
        except OSError as error:
            raise _refused(self.folder, error) from None
        finally:
            self.abort()
        return self.folder

    def abort(self) -> None:
        """Drop everything that has not got its name yet."""
        for shard in self._shards:
            shard.file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._lock.close()

    def _shard(self, name: str) -> _Shard:
        if not self._shards or not self._shards[-1].has_room(name):
            self._shards.append(_Shard((self._temporary / f"part-{len(self._shards)}").open("wb")))
        return self._shards[-1]

    def _finish(self, tokenizer_files: dict[str, Any]) -> None:
        for name, array in self._arrays.items():
            self._shard(name).append(name, array)
        count = len(self._shards)
        weight_map = {}
        for i, shard in enumerate(self._shards):
            shard.close()
            name = "model.safetensors" if count == 1 else f"model-{i + 1:05}-of-{count:05}.safetensors"
            os.rename(self._temporary / f"part-{i}", self._temporary / name)
            weight_map.update(dict.fromkeys(shard.entries, name))
        if count > 1:
            total = sum(shard.end for shard in self._shards)
            self._write("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
        quantization = {"quant_method": METHOD, "version": VERSION, "plan": self.plan, "tensors": self._metas, "columns": self._columns,
                        **({CACHE_SCALES: self._cache_scales} if self._cache_scales else {})}
        self._write("config.json", {**self.config, "quantization_config": quantization})
        self._write_tokenizer(tokenizer_files)
        self._write(MANIFEST, self.manifest)
        (self._temporary / ".lock").unlink()
        sync_folder(self._temporary)
        self._publish()

    def _write_tokenizer(self, files: dict[str, Any]) -> None:
        settings = dict(files.get("config") or {})
        if isinstance(templates := settings.get("chat_template"), dict):
            settings["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
        self._write("tokenizer_config.json", settings)
        self._write("generation_config.json", files.get("generation") or {})
        if (tokenizer := files.get("tokenizer")) is not None:
            self._write("tokenizer.json", tokenizer.to_str())

    def _write(self, name: str, content: dict[str, Any] | str) -> None:
        write_synced(self._temporary / name, (content if isinstance(content, str) else json.dumps(content, indent=1)).encode())

    def _publish(self) -> None:
        os.chmod(self._temporary, 0o755)  # mkdtemp made it private
        while True:
            try:
                os.rename(self._temporary, self.folder)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if _manifest(self.folder) == self.manifest:
                return  # somebody else was first with the same contents
            retired = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}{MARK}", dir=self.folder.parent))
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.folder, retired / "old")  # whoever has it mapped keeps reading it
            shutil.rmtree(retired, ignore_errors=True)
        sync_folder(self.folder.parent)


class _Shard:
    """One safetensors file in the making: data first, the header in the room kept for it when all is known."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.end, self.header_bytes = file, 0, 64
        self.entries: dict[str, dict[str, Any]] = {}
        file.seek(HEADER)

    def has_room(self, name: str) -> bool:
        return self.end < SHARD and self.header_bytes + len(json.dumps(name)) + ENTRY < HEADER

    def append(self, name: str, array: np.ndarray) -> None:
        dtype = {"f": "F32", "i": "I32"}.get(array.dtype.kind, "U8")
        self.entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [self.end, self.end + array.nbytes]}
        self.header_bytes += len(json.dumps(name)) + ENTRY
        self.end += array.nbytes
        if array.nbytes:
            self.file.write(array.data)

    def close(self) -> None:
        header = json.dumps({"__metadata__": {"format": METHOD}, **self.entries}, separators=(",", ":")).encode()
        self.file.seek(0)
        self.file.write((HEADER - 8).to_bytes(8, "little") + header.ljust(HEADER - 8))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def clear_abandoned(parent: Path) -> None:
    """Remove the hidden folders of writers that are gone."""
    for folder in parent.glob(f".*{MARK}*"):
        try:
            if time.time() - folder.stat().st_mtime < ABANDONED_SECONDS:
                continue
            if (folder / ".lock").exists():
                with (folder / ".lock").open("rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # held by a living writer, or gone meanwhile
            continue


def _manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return read_object(folder / MANIFEST)
    except CheckpointError:
        return None


def _refused(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot be written: {error.strerror or error}", where=str(folder), remedy="free space, or choose another folder (--cache-dir)")
