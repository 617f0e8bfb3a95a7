"""The only reader of environment variables. Each has a flag twin that wins over it.

| variable        | flag          | meaning                                                    |
|-----------------|---------------|------------------------------------------------------------|
| OCTAVO_CACHE    | --cache-dir   | where quantized checkpoints are kept                       |
| OCTAVO_THREADS  | --threads     | threads of the native kernels                              |
| OCTAVO_ISA      | --isa         | the kernels' instruction set: portable, avx2, avx512vnni, avx512bf16, amx |
| OCTAVO_API_KEY  | --api-key     | the key that clients of the server must send               |
| OTEL_EXPORTER_OTLP_ENDPOINT | --otlp-endpoint | the collector that traces are sent to (OpenTelemetry's own name) |
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError


@dataclass(frozen=True)
class Settings:
    cache_dir: Path
    threads: int | None
    isa: str | None
    api_key: str | None
    otlp_endpoint: str | None


def read_settings() -> Settings:
    """Settings from the environment as it is now."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    threads = os.environ.get("OCTAVO_THREADS")
    if threads is not None and (not threads.isdigit() or int(threads) < 1):
        raise UsageError(f"must be a whole number above 0, not {threads!r}", where="OCTAVO_THREADS")
    return Settings(
        cache_dir=Path(os.environ.get("OCTAVO_CACHE") or os.path.join(home, "octavo")),
        threads=int(threads) if threads else None,
        isa=os.environ.get("OCTAVO_ISA") or None,
        api_key=os.environ.get("OCTAVO_API_KEY") or None,
        otlp_endpoint=os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
    )
