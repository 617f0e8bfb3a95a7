"""Speed: why quantizing brought no speed-up. First what runs, then on what, then with whom it shares the machine, then where the time goes.

quantized? -> native or emulated -> kernels -> threads -> limits -> other load -> policy -> where the time goes -> faster than the original?
"""

from __future__ import annotations

from pathlib import Path

from .case import Case
from .complaint import RUNS, Complaint
from .findings import Report, Topic
from .surroundings import Surroundings
from .tree import disorders, walk


def examine(path: Path, complaint: Complaint = Complaint(), surroundings: Surroundings | None = None) -> Report:  # noqa: B008  # it is frozen
    """Raises what loading the model raises."""
    return walk("speed", Case(path, complaint, surroundings))


TOPIC = Topic(examine, disorders("speed"), RUNS | {"against", "users", "context", "policy_dir"})
