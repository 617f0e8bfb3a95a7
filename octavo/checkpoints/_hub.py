"""Models from the Hugging Face hub, through huggingface_hub and its cache."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "*.txt", "LICENSE*", "NOTICE*", "README*"]
IGNORED = ["original/*", "onnx/*", "*.bin.index.json"]


def looks_like_id(name: str) -> bool:
    """owner/name, or a bare name of the hub's early models; never a path."""
    return _ID.fullmatch(name) is not None and not name.endswith((".gguf", ".safetensors", ".json", ".bin")) and ".." not in name


def fetch(name: str, revision: str | None) -> Path:
    """The folder of a hub model, or its .gguf file when that is the only form it has; downloads what the cache lacks, with a progress bar.

    Raises CheckpointError in one plain line: offline, unknown, or gated.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors, snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, ignore_patterns=IGNORED))
        if any(folder.glob("*.safetensors")):
            return folder
        files = [f for f in huggingface_hub.list_repo_files(name, revision=revision) if f.endswith(".gguf")]
        if len(files) == 1:
            return Path(huggingface_hub.hf_hub_download(name, files[0], revision=revision))
    except errors.GatedRepoError:
        raise CheckpointError("this model is gated", where=name, remedy="accept its terms on huggingface.co and log in with `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"the hub has no revision {revision!r} of this model", where=name) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError("the hub has no such model, or it is private", where=name, remedy="check the spelling (owner/name)") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = "offline mode is on" if constants.HF_HUB_OFFLINE else f"the hub cannot be reached ({type(error).__name__})"
        raise CheckpointError(f"{reason}, and the model is not in the cache at {constants.HF_HUB_CACHE}", where=name,
                              remedy="connect once, or name a folder or .gguf file on this machine") from None
    if files:
        raise CheckpointError(f"holds {len(files)} GGUF files and no safetensors", where=name, remedy=f"download one, such as {files[0]}, and name the file")
    raise CheckpointError("holds no safetensors and no GGUF files", where=name, remedy="choose a repository that has them")
