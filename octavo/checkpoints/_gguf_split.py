"""A GGUF model in several files, `NAME-00001-of-0000N.gguf` and so on, read as one.

Each file is a whole GGUF with a part of the tensors; metadata of the model stands in the first, and split.no, split.count and
split.tensors.count in each. Source: llama.cpp, tools/gguf-split.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ._gguf_reader import GgufFile, parse
from ._json import shown
from ._mapped import MappedFile

NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_parts(path: Path) -> GgufFile:
    """The model that this file is, or is a part of. Raises CheckpointError for a part that is missing, of another model, or repeated."""
    match = NAME.fullmatch(path.name)
    if match is not None and int(match["number"]) > 1:
        first = _named(path, match["stem"], 1, int(match["count"]))
        if not first.is_file():
            raise CheckpointError(f"is part {int(match['number'])} of a model, and the first part is missing", where=str(path),
                                  remedy=f"fetch {first.name} into the same folder")
        path = first
    source = parse(MappedFile(path))
    count = source.metadata.get("split.count", 0)
    if type(count) is not int or count < 2:
        return source
    match = NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise CheckpointError(f"is one of {count} parts by its metadata, which its name does not say", where=str(path),
                              remedy=f"name the parts ...-00001-of-{count:05}.gguf and so on, or join them with llama-gguf-split --merge")
    if source.metadata.get("split.no", 0) != 0:
        raise CheckpointError(f"is named the first part and says that it is part {shown(source.metadata['split.no'])} (from 0)", where=str(path),
                              remedy="the parts were renamed: fetch them again")
    tensors, files = dict(source.tensors), [source.file]
    for number in range(2, count + 1):
        file = _named(path, match["stem"], number, count)
        if not file.is_file():
            raise CheckpointError("is missing: the model has this part too", where=str(file), remedy="fetch it into the same folder")
        part = parse(MappedFile(file))
        _check(part, number, count)
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(f"tensor {shown(name)} also stands in {tensors[name].file.path.name}", where=str(file), remedy="fetch the parts again")
            tensors[name] = tensor
        files.append(part.file)
    total = source.metadata.get("split.tensors.count")
    if type(total) is int and total != len(tensors):
        raise CheckpointError(f"says that its {count} parts hold {total} tensors; they hold {len(tensors)}", where=str(path), remedy="fetch the parts again")
    return replace(source, tensors=tensors, parts=tuple(files))


def _named(path: Path, stem: str, number: int, count: int) -> Path:
    return path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")


def _check(part: GgufFile, number: int, count: int) -> None:
    expected: dict[str, Any] = {"split.no": number - 1, "split.count": count}
    for key, value in expected.items():
        if part.metadata.get(key) != value:
            raise CheckpointError(f"says {key} is {shown(part.metadata.get(key))}, not {value}", where=str(part.file.path),
                                  remedy="the parts were renamed or are of different models: fetch them again")
