"""Texts that quality is measured on: read as documents, named, and known by their hash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..text.documents import documents

HEADING = re.compile(r"(?m)^(?= = [^=\n]+ = *$)")  # of a WikiText article; sections have more equals signs
WIKITEXT = ("ggml-org/ci", "wikitext-2-raw-v1.zip", "wikitext-2-raw/wiki.{}.raw")


@dataclass(frozen=True)
class EvaluationText:
    """documents: parts that are put together as they are; sha256: of all of it in UTF-8."""

    name: str
    documents: Sequence[str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256("".join(self.documents).encode()).hexdigest()


def read_text(source: str | Path) -> EvaluationText:
    """A text by name: a .jsonl file (a document a line, see text/documents.py), any other file (UTF-8; WikiText's articles are documents),
    `wikitext2`, the test part of WikiText-2 (raw) from the hub, or `receipt`, the text of receipts.

    Raises UsageError.
    """
    path = Path(source).expanduser()
    if str(source) == "receipt" and not path.exists():
        from .own_text import OWN_TEXT

        return OWN_TEXT
    if str(source) == "wikitext2" and not path.exists():
        return EvaluationText("wikitext2", _articles(_wikitext("test")))
    lines = path.suffix == ".jsonl"
    try:
        found = [f"{document}\n\n" for document in documents(path)] if lines else _articles(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"cannot read the text: {why}", where=str(source), remedy="name a UTF-8 file, or wikitext2") from None
    if not found:
        raise UsageError("holds no text", where=str(source))
    return EvaluationText(path.name, found)


def calibration_text(source: str | Path) -> EvaluationText | None:
    """The text to calibrate on that this name stands for: `wikitext2` is the training part of WikiText-2, of which no evaluation takes anything. None for the
    name of a file. Raises UsageError, also for names that `read_text` alone knows, since what quality is measured on must not be calibrated on."""
    if Path(source).expanduser().exists():
        return None
    if str(source) == "receipt":
        raise UsageError("quality is measured on this text", where=str(source), remedy="calibrate on another: a .txt or .jsonl file, or wikitext2")
    return EvaluationText("wikitext2 (training part)", _articles(_wikitext("train"))) if str(source) == "wikitext2" else None


def _articles(content: str) -> list[str]:
    return [part for part in HEADING.split(content) if part] or [content]


def _wikitext(part: str) -> str:
    """The part `test` or `train`, out of the archive that llama.cpp's scripts take, too; downloaded once into the hub's cache."""
    import zipfile

    from huggingface_hub import errors, hf_hub_download

    repository, archive, member = WIKITEXT
    try:
        with zipfile.ZipFile(hf_hub_download(repository, archive, repo_type="dataset")) as files:
            return files.read(member.format(part)).decode("utf-8")
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError, ValueError, KeyError,
            zipfile.BadZipFile) as error:
        raise UsageError(f"WikiText-2 is not in the hub's cache and cannot be downloaded ({type(error).__name__})", where="wikitext2",
                         remedy="connect once, or name a file with the text") from None
