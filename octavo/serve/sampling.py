"""From the fields of a request to the engine's Sampling."""

from __future__ import annotations

from typing import Any, TypeVar

from ..engine.request import Sampling
from .options import ServerOptions
from .problems import Problem
from .schemas import Generation

T = TypeVar("T")

# Fields of OpenAI's that would change the answer and that no model here can honour: refused rather than ignored.
UNSUPPORTED: dict[str, str] = {
    "functions": "use tools", "function_call": "use tool_choice", "audio": "only text is served", "prediction": "leave it out",
    "web_search_options": "leave it out",
}


def refuse_unsupported(body: Generation) -> None:
    """Raises Problem 400 for fields that must not be ignored silently."""
    for name, remedy in UNSUPPORTED.items():
        if (body.model_extra or {}).get(name):
            raise Problem(400, f"Unsupported parameter: '{name}'; {remedy}.", param=name, code="unsupported_parameter")
    modalities = (body.model_extra or {}).get("modalities")
    if modalities and modalities != ["text"]:
        raise Problem(400, "Unsupported parameter: 'modalities'; only text is served.", param="modalities", code="unsupported_parameter")


def sampling(body: Generation, options: ServerOptions, *, max_tokens: int | None, max_field: str = "max_tokens", logprobs: int | None = None,
             grammar: dict[str, Any] | None = None) -> Sampling:
    """`max_tokens` is what the request asks for in the field `max_field`, `logprobs` how many alternatives per token (None: no log
    probabilities). Raises Problem 400 when the answer would be longer than the operator allows."""
    if options.max_tokens is not None:
        if max_tokens is not None and max_tokens > options.max_tokens:
            raise Problem(400, f"{max_field} is too large: {max_tokens}; this server gives at most {options.max_tokens} tokens.", param=max_field,
                          code="invalid_value")
        max_tokens = options.max_tokens if max_tokens is None else max_tokens
    stop = body.stop
    return Sampling(
        temperature=_or(body.temperature, 1.0), top_k=max(_or(body.top_k, 0), 0), top_p=_or(body.top_p, 1.0), min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0), frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0), seed=None if body.seed is None else body.seed & ((1 << 64) - 1),
        logit_bias={int(k): v for k, v in (body.logit_bias or {}).items()}, max_tokens=max_tokens, min_tokens=_or(body.min_tokens, 0),
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()), stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos, logprobs=logprobs, include_stop=body.include_stop_str_in_output,
        grammar=grammar if grammar is not None else body.response_format.grammar if body.response_format else None,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
