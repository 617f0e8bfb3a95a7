"""The error tree. Every error a user can meet says what was wrong, where, and what to do.

    OctavoError                 base; the CLI prints it in one line and exits with `exit_code`
    ├── UsageError              an option, a name or a combination that cannot be (exit 2)
    │   ├── SchemeError         a precision name that does not parse, or a scheme that cannot exist
    │   └── UnknownNameError    a name that is in no registry; lists the known ones
    ├── CheckpointError         a file that is truncated, corrupted, hostile or incomplete (exit 2)
    ├── ModelError              an architecture or a config field that is not supported (exit 2)
    ├── CapacityError           does not fit: memory, context length (exit 2)
    ├── KernelError             no kernel can run a problem here; carries every refusal (exit 2)
    ├── QualityError            a model that has lost more than --max-kl allows (exit 2)
    ├── MissingExtraError       an optional dependency is not installed; names the extra (exit 2)
    └── RequestError            a request the server refuses (HTTP 4xx)
        ├── PromptTooLongError
        ├── QueueFullError      carries retry_after seconds (HTTP 429)
        └── StoppingError       the server is shutting down (HTTP 503)
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of all errors raised on purpose. `where` names the file, tensor, layer or field; `remedy` what to do."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}. {remedy}" if remedy else text)


class UsageError(OctavoError):
    exit_code = 2


class SchemeError(UsageError):
    pass


class UnknownNameError(UsageError):
    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}", remedy=f"known: {', '.join(sorted(known)) or 'none'}")
        self.name, self.known = name, known


class CheckpointError(OctavoError):
    exit_code = 2


class ModelError(OctavoError):
    exit_code = 2


class CapacityError(OctavoError):
    exit_code = 2


class KernelError(OctavoError):
    exit_code = 2


class QualityError(OctavoError):
    exit_code = 2


class MissingExtraError(OctavoError):
    exit_code = 2


class RequestError(OctavoError):
    """A request that is refused; `param` is the field of the request that is at fault."""

    status = 400
    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "", param: str | None = None) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.param = param


class PromptTooLongError(RequestError):
    pass


class QueueFullError(RequestError):
    status = 429

    def __init__(self, what: str, *, retry_after: float = 1.0) -> None:
        super().__init__(what, remedy=f"try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class StoppingError(RequestError):
    status = 503
