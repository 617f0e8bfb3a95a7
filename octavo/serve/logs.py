"""Log lines: as text, or as one JSON object a line for collectors; with the request that they are about. Prompts and answers are never logged."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

from .identity import Identity, current

Format = Literal["text", "json"]
ACCESS = logging.getLogger("octavo.requests")


class JsonFormatter(logging.Formatter):
    """{"time" (RFC 3339, UTC), "level", "logger", "message", "request_id", "trace_id", "error"} and what the line itself adds."""

    def format(self, record: logging.LogRecord) -> str:
        identity = current()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage(),
            **({"request_id": identity.id} if identity is not None else {}),
            **({"trace_id": identity.trace} if identity is not None and identity.trace else {}),
            **getattr(record, "facts", {}), **({"error": self.formatException(record.exc_info)} if record.exc_info else {}),
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`time level logger: message`, and the request in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        identity = current()
        text = super().format(record)
        return text if identity is None else f"{text} [{identity.id}]"


def set_up(level: int, form: Format, requests: bool) -> None:
    """Log to standard error. `requests`: a line for every HTTP request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("octavo").setLevel(level)
    ACCESS.setLevel(logging.INFO if requests else logging.CRITICAL)


def log_request(identity: Identity, method: str, route: str, status: int, seconds: float) -> None:
    """The line of a request that has ended."""
    if ACCESS.isEnabledFor(logging.INFO):
        facts = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6), **identity.facts, **identity.numbers()}
        ACCESS.info("%s %s %d in %.3f s", method, route, status, seconds, extra={"facts": facts})
