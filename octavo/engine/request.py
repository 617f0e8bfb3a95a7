"""What a user asks of the engine and what comes back. Token ids in, text deltas out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Defaults are OpenAI's; temperature 0 is greedy.

    Order: logit_bias, penalties (repetition as in CTRL, arXiv 1909.05858; presence and frequency as in OpenAI's reference),
    grammar mask, temperature, top_k, top_p, min_p (arXiv 2407.01082), draw. The draw for the i-th new token of a request depends on (seed, choice
    index, i) and its logits alone.
    """

    temperature: float = 1.0
    top_k: int = 0                       # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    max_tokens: int | None = None        # None: as many as the context allows
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None          # None: none; n: the chosen token's and the n best ones'
    include_stop: bool = False
    grammar: dict[str, Any] | None = None  # {"json_schema": ...} | {"json_object": True} | {"regex": ...} | {"lark": ...}


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    echo_logprobs: bool = False          # log probabilities of the prompt's tokens too (completions with echo)
    timeout: float | None = None         # seconds from submission to the last token
    id: str = ""


class Finish(StrEnum):
    STOP = "stop"            # end-of-text token or a stop string
    LENGTH = "length"        # max_tokens or the context is full
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    ERROR = "error"          # NaN in the logits, a failed kernel: `Delta.error` says it


@dataclass(frozen=True)
class TokenLogprob:
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Delta(NamedTuple):  # made for every token: a tuple costs a fifth of a frozen dataclass
    """A piece of one choice. The last one of a choice carries `finish`."""

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    stop_reason: str | int | None = None   # the stop string or token id that ended it
    error: str | None = None
    cached_tokens: int = 0                 # prompt tokens found in the prefix cache (on the first delta)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # on the first delta when echo_logprobs
