"""Settings documented: what it takes to make and serve this model again, with the hashes of all files, and whether its receipt is of these files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import Checkpoint, open_checkpoint
from ..errors import OctavoError
from ..quality.receipt import Receipt, beside, digests, is_of, read_receipt
from .lines import Line

if TYPE_CHECKING:
    from ..loading import LoadedModel

TITLE = "Settings documented"
HASH = 12  # digits shown of one


def receipt_beside(source: str) -> Receipt | None:
    """The receipt that lies beside a model's files, of whatever files it is."""
    path = Path(source).expanduser()
    return read_receipt(beside(path)) if path.exists() else None


def facts(source: str, asked: str | None, model: LoadedModel, options: Sequence[str], allow_pickle: bool, cache_dir: Path | None) -> dict[str, Any]:
    """Of one side: its files with their sha256, what they hold, the precision of every tensor, what was asked of the server.

    `problem` where its files cannot be told, or its receipt is of others.
    """
    found: dict[str, Any] = {"source": source, "asked": asked, "codec": model.report.codec, "plan": model.plan.to_json(), "scheme": str(model.plan),
                             "cache": model.cache_spec.format, "serve_options": list(options), "notes": list(model.report.notes)}
    try:
        checkpoint: Checkpoint = open_checkpoint(source, allow_pickle=allow_pickle)
        found["sha256"] = digests(checkpoint, cache_dir)
    except OctavoError as error:
        return found | {"problem": f"its files cannot be hashed: {error}"}
    receipt = receipt_beside(source)
    if receipt is not None:
        found["receipt"] = {"created": receipt.created, "settings": receipt.settings, "calibration": receipt.calibration, "original": receipt.original,
                            "versions": receipt.versions, "line": receipt.line}
        if not is_of(receipt, checkpoint, cache_dir):
            found["problem"] = "its receipt is of other files: something has changed in them since it was written"
    return found


def documented(model: dict[str, Any], original: dict[str, Any]) -> Line:
    """The line, from `facts` of both."""
    problems = [f"{who}: {one['problem']}" for who, one in (("model", model), ("original", original)) if "problem" in one]
    made_of = (model.get("receipt") or {}).get("original", {}).get("sha256")
    if not problems and made_of and original.get("sha256") and made_of != original["sha256"]:
        problems.append("the receipt says that the model was made of other files than this original's")
    hashes = "; ".join(f"{who} {', '.join(f'{name} {digest[:HASH]}' for name, digest in one.get('sha256', {}).items())}"
                       for who, one in (("model", model), ("original", original)))
    how = ("made by the settings in its receipt" if "receipt" in model else f"quantized as it loads, by {model['asked']}" if model["asked"] is not None
           else f"settings as its own files have them ({model['codec']}), no receipt beside them")
    evidence = "; ".join([*problems, f"{model['scheme']}, cache {model['cache']}, {how}; sha256 of {hashes}; all of it in report.json"])
    return Line("settings", TITLE, "fail" if problems else "pass", evidence)


def unmeasured(reason: str) -> Line:
    return Line("settings", TITLE, "not measured", reason)
