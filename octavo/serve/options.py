"""What an operator can set about the HTTP server."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class ServerOptions:
    """Limits and manners of the HTTP server.

    names            names that clients may give as `model`; the first is the one shown
    api_key          the key that clients must send as `Authorization: Bearer KEY`; None: no key
    protect_metrics  /metrics wants the key too (/health never does)
    cors_origins     origins of web pages that may call; empty: none
    max_body_bytes   largest body of a request
    body_timeout     seconds a client may take to send its body
    max_tokens       longest answer a request may ask for; None: what the context allows
    drain_seconds    seconds that running requests get to finish when the server is stopped
    page             show a page at /: figures, the receipt, a playground
    """

    names: tuple[str, ...]
    api_key: str | None = None
    protect_metrics: bool = False
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 << 20
    body_timeout: float = 60.0
    max_tokens: int | None = None
    drain_seconds: float = 30.0
    page: bool = True

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "body_timeout", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"must be above 0, not {value}", where=name)
        if self.drain_seconds < 0:
            raise UsageError(f"must not be negative, not {self.drain_seconds}", where="drain_seconds")
        if not self.names or not all(self.names):
            raise UsageError("the model needs a name", where="served_model_name")
        if self.api_key is not None and not self.api_key:
            raise UsageError("must not be empty", where="api_key", remedy="leave it out to serve without a key")
