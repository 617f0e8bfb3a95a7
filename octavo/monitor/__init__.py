"""Alert rules and a dashboard for the server's metrics, made from the table of definitions in `octavo.telemetry`."""

from .alerts import ALERTS, RECORDS, Alert, Limits, Record
from .dashboard import dashboard
from .rules import rules

__all__ = ["ALERTS", "RECORDS", "Alert", "Limits", "Record", "dashboard", "rules"]
