"""Whether a module is still what a recorded program was made of. Asked in every forward, so it is a few microseconds for hundreds of tensors."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import nn

from ._weight import threads

_address, _writes = torch.Tensor.data_ptr, attrgetter("_version")


class Unchanged:
    """Taken of a module; `holds` while its tensors are where they were and nobody wrote to them (writes to tensors made under inference_mode are not
    counted by torch), and torch uses as many threads."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = list(module.state_dict(keep_vars=True).values())
        self._counted = [t for t in self._tensors if not t.is_inference()]
        inner = [part for part in module.modules() if part is not module]
        self._hooks: list[Any] = [hooks for part in inner for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._stamp = self._now()

    def _now(self) -> tuple[Any, ...]:
        return threads(), [*map(_address, self._tensors)], [*map(_writes, self._counted)]

    def holds(self) -> bool:
        return self._stamp == self._now()

    def watched(self) -> bool:
        """Whether somebody put hooks on a part inside the module, which wants to be called then."""
        return any(self._hooks)
