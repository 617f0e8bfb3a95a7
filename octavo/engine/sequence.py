"""Sequence: one choice of one request while the engine works on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .request import Request, Sampling, TokenLogprob

if TYPE_CHECKING:
    from .grammar import Grammar
    from .output import Output
    from .sampler import Sampler
    from .ticket import Ticket


@dataclass(eq=False)
class Sequence:
    """tokens = prompt + answer; the first `computed` of them have keys and values in `pages`. One is to be sampled when all are computed.

    `pages` covers all tokens as soon as the sequence is admitted; `names` are those of its first full pages (PagePool.names).
    """

    ticket: Ticket
    choice: int
    tokens: list[int]
    prompt_length: int
    limit: int                                   # tokens at most, prompt included
    sampler: Sampler
    output: Output
    submitted: float                             # time.monotonic()
    deadline: float = float("inf")
    grammar: Grammar | None = None
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    table: np.ndarray | None = None              # int32: the first `tabled` pages, as steps want them
    tabled: int = 0
    names: list[bytes] = field(default_factory=list)
    published: int = 0                           # pages that were given a name
    cached_tokens: int = 0                       # prompt tokens found in the prefix cache at first admission
    started: bool = False                        # admitted at least once
    counted: bool = False                        # no longer counts as queued
    opened: bool = False                         # its first delta was handed out
    prefilled: bool = False                      # its prompt was computed once; siblings may follow
    finished: bool = False
    siblings: list[Sequence] = field(default_factory=list)   # choices that wait for this one's prompt pages
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    admitted: float = 0.0                        # times of its first admission, of its first and of its newest token; 0: not yet
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def request(self) -> Request:
        return self.ticket.request

    @property
    def sampling(self) -> Sampling:
        return self.ticket.request.sampling

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def wants_prompt_logprobs(self) -> bool:
        return not self.prefilled and self.choice == 0 and self.request.echo_logprobs
