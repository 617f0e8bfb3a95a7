"""octavo.quantize(module, ...): the methods of this verb on the layers of any torch module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from ..schemes import Plan, Scheme
from .method import BlockRounder, rounder

if TYPE_CHECKING:
    from torch import nn


def quantize_module(module: nn.Module, scheme: str | Scheme | Plan, data: Iterable[Any] | None = None, method: str = "rtn", *,
                    options: Mapping[str, str] | None = None, **more: Any) -> nn.Module:
    """octavo.modules.quantize with a method by name: what `octavo list methods` shows, except those that need a whole language model.

    method   "rtn" needs no data; "gptq" and others look at the inputs that `data` gives each layer
    options  of the method, as text: {"damping": "0.02"}
    more     as octavo.modules.quantize: observer, smoothing, bias_correction, in_place
    """
    try:
        from .. import modules
    except ImportError as problem:
        raise MissingExtraError(f"quantizing torch modules needs torch ({problem.name} is not installed)", where="octavo.quantize",
                                remedy="pip install 'octavo[torch]'") from None
    chosen = rounder(method, options)
    made = modules.quantize(module, scheme, data, chosen, without_data=rounder("rtn"), **more)
    if isinstance(chosen, BlockRounder):
        modules.report(made).notes.append(f"{method} learns over whole layers of language models; here each weight is rounded by itself, as it begins")
    return made
