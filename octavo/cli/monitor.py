"""`octavo monitor export`: what Prometheus and Grafana need to watch a server."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ._command import Command

README = """# Watching octavo serve

Made by `octavo monitor export` (Octavo {version}); run it again after an update.

1. prometheus.yml: the server as a target, and the rules. Where the server was started with --protect-metrics, uncomment the key.

       rule_files: [octavo-rules.yml]
       scrape_configs:
         - job_name: {job}
           static_configs: [{{targets: ["127.0.0.1:8000"]}}]
           # authorization: {{credentials_file: /etc/prometheus/octavo.key}}

2. `promtool check rules octavo-rules.yml`, then reload Prometheus.
3. Grafana: Dashboards, New, Import, upload octavo-dashboard.json, choose the Prometheus source.
"""


@dataclass
class Options:
    action: Literal["export"]
    """export: write alert rules, a dashboard, and how to use them."""

    _: KW_ONLY

    out: Path = Path("octavo-monitoring")
    """Folder to write to."""

    first_token: float = 2.0
    """Alert when the 95th percentile of the time to the first token is above this, in seconds."""

    token_gap: float = 0.25
    """The same of the time between two tokens."""

    queue: float = 5.0
    """The same of the time in the queue."""

    errors: float = 0.01
    """Alert when more than this share of the requests fails."""

    drift: float = 3.0
    """Alert when live requests lose more than so many times what the receipt says."""

    job: str = "octavo"
    """Name of the job in Prometheus."""


def run(options: Options) -> None:
    """Write alert rules for Prometheus and a dashboard for Grafana, made from the definitions of the server's metrics."""
    from .. import __version__
    from ..monitor import Limits, dashboard, rules

    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    folder = options.out.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {"octavo-rules.yml": rules(limits), "octavo-dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
                           "README.md": README.format(version=__version__, job=limits.job)}.items():
            (folder / name).write_text(text)
            print(folder / name)
    except OSError as error:
        raise UsageError(f"cannot be written: {error.strerror}", where=str(folder), remedy="choose another folder with --out") from None


COMMAND = Command("monitor", Options, run)
