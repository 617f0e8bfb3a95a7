"""Loading: checkpoint, model and policy meet here and become a model that answers.

    open -> read the config -> declare tensors -> assign precision and kernel to each -> foresee memory -> stream, or map from the cache
"""

from __future__ import annotations

from ._assign import ways
from ._choices import plan_as_stored
from ._load import Foreseen, foresee, load
from ._memory import resident
from ._model import LoadedModel
from ._origin import open_model
from ._policy import Choosable, apply_kernels, apply_policy, choosable, fingerprint, linear_facts, native_of
from ._report import LoadReport, Progress, Runs
from ._sensitivity import CacheChoice, CacheSearch
from ._stream import make_vector, read_rows

__all__ = [
    "CacheChoice", "CacheSearch", "Choosable", "Foreseen", "LoadReport", "LoadedModel", "Progress", "Runs", "apply_kernels", "apply_policy", "choosable",
    "fingerprint", "foresee", "linear_facts", "load", "make_vector", "native_of", "open_model", "plan_as_stored", "read_rows", "resident", "ways",
]
