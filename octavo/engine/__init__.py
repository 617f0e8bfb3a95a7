"""The engine: continuous batching over a paged key-value cache. Requests of token ids in, text deltas out."""

from __future__ import annotations

from .engine import Engine
from .options import EngineOptions
from .request import Delta, Finish, Request, Sampling, TokenLogprob
from .ticket import Ticket

__all__ = ["Delta", "Engine", "EngineOptions", "Finish", "Request", "Sampling", "Ticket", "TokenLogprob"]
