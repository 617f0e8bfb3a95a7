"""Files: do they hold what they claim, are all of them there, and is anything beside them that should not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...checkpoints import PICKLES
from ..findings import Disorder, Finding
from ..patient import Patient
from . import Check

AGAIN = "fetch the file again and compare its size with the publisher's"
KINDS = {kind.code: kind for kind in (
    Disorder("unreadable_file", "error", "a file that cannot be read", AGAIN),
    Disorder("truncated_file", "error", "a file is shorter than its header says", AGAIN),
    Disorder("bad_entry", "error", "the header's claim about a tensor cannot be", AGAIN),
    Disorder("overlap", "error", "two tensors lie on the same bytes", AGAIN),
    Disorder("uncovered_bytes", "warning", "bytes of a file belong to no tensor; the safetensors library refuses such files", "save the file again"),
    Disorder("duplicate_tensor", "error", "a tensor stands in two files: which one counts depends on the reader", "remove one of the two"),
    Disorder("missing_shard", "error", "the index names a file that is not there", "fetch the missing file"),
    Disorder("unlisted_shard", "warning", "a file of weights that nobody reads, because the index does not name it",
             "remove it, or make the index anew: engines that read every file of the folder will take its tensors"),
    Disorder("unlisted_tensor", "warning", "a tensor in a file although the index says otherwise", "make the index anew"),
    Disorder("index_without_tensor", "error", "the index names a tensor that its file does not hold", "fetch index and files again, from one place"),
)}
REFUSED = Disorder("refused", "error", "Octavo does not open it", "the findings beside this one say where to look")
PICKLED = Disorder("pickled_weights", "warning", "pickled weights lie beside the others; reading them can run code",
                   "remove them: the safetensors files hold the weights")
REMOTE = Disorder("remote_code", "info", "the config names code of its own (auto_map); Octavo never runs it, other engines do with trust_remote_code",
                  "read that code before you let an engine run it")


def check(patient: Patient) -> Iterator[Finding]:
    for complaint in patient.survey.complaints:
        yield KINDS[complaint.code](complaint.tensor or complaint.file, f"{complaint.file}: {complaint.what}" if complaint.tensor else complaint.what)
    if patient.refusal is not None:
        yield REFUSED(patient.refusal.where, f"{patient.refusal.what}. {patient.refusal.remedy}".strip())
    if patient.path.is_dir():
        weights = bool(patient.survey.files)
        for file in sorted(patient.path.iterdir()):
            if weights and file.suffix in PICKLES and file.is_file() and _pickled(file):
                yield PICKLED(file.name, f"{file.stat().st_size} bytes")
    code = patient.text_config.get("auto_map")
    if isinstance(code, dict) and code:
        yield REMOTE("config.json: auto_map", ", ".join(str(value)[:60] for value in list(code.values())[:4]))


def _pickled(file: Path) -> bool:
    """torch's zip archives and plain pickles begin like this; a .bin may be anything."""
    with file.open("rb") as opened:
        head = opened.read(4)
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and head[1:2] <= b"\x05")


CHECK = Check(check, (*KINDS.values(), REFUSED, PICKLED, REMOTE))
