"""What a request may ask. Every refusal names the field."""

from __future__ import annotations

import math

from ..errors import PromptTooLongError, RequestError
from .request import Request, Sampling


def check(request: Request, *, vocabulary: int, max_model_len: int, max_choices: int) -> None:
    """Raise RequestError when the request cannot be served as it is."""
    length, s = len(request.prompt), request.sampling
    if not length:
        raise RequestError("the prompt is empty", param="prompt")
    if length + (s.max_tokens != 0) > max_model_len:
        raise PromptTooLongError(f"the prompt has {length} tokens and the model's context is {max_model_len}, one of them for the answer",
                                 param="prompt", remedy="shorten the prompt")
    if min(request.prompt) < 0 or max(request.prompt) >= vocabulary:
        raise RequestError(f"token ids must lie in 0 .. {vocabulary - 1}", param="prompt")
    if not 1 <= request.n <= max_choices:
        raise RequestError(f"must be 1 .. {max_choices}, not {request.n}", where="n", param="n")
    if request.timeout is not None and not request.timeout > 0:
        raise RequestError(f"must be above 0, not {request.timeout}", where="timeout", param="timeout")
    _check_sampling(s, vocabulary)


def _check_sampling(s: Sampling, vocabulary: int) -> None:
    for name, low, high in (
        ("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1), ("presence_penalty", -2, 2), ("frequency_penalty", -2, 2),
        ("repetition_penalty", 0, 100), ("top_k", 0, math.inf), ("min_tokens", 0, math.inf),
    ):
        value = getattr(s, name)
        if not low <= value <= high or (value == 0 and name in ("top_p", "repetition_penalty")):
            raise RequestError(f"must lie in {low} .. {high}, not {value}", where=name, param=name)
    if s.max_tokens is not None and s.max_tokens < 0:
        raise RequestError(f"must not be negative, not {s.max_tokens}", where="max_tokens", param="max_tokens")
    if s.logprobs is not None and not 0 <= s.logprobs <= 100:
        raise RequestError(f"must lie in 0 .. 100, not {s.logprobs}", where="logprobs", param="logprobs")
    if any(not 0 <= t < vocabulary for t in (*s.logit_bias, *s.stop_token_ids)):
        raise RequestError(f"token ids must lie in 0 .. {vocabulary - 1}", param="logit_bias" if s.logit_bias else "stop_token_ids")
    if not all(math.isfinite(v) for v in s.logit_bias.values()):
        raise RequestError("a bias is not a finite number", where="logit_bias", param="logit_bias")
    if len(s.stop) > 64 or any(len(stop) > 1024 for stop in s.stop):
        raise RequestError("at most 64 stop strings of at most 1024 characters", where="stop", param="stop")
