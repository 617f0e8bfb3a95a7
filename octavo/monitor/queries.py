"""PromQL over the metrics of the table; a name that is not in it raises KeyError."""

from __future__ import annotations

from ..telemetry import DEFINITIONS

BY = ("job", "instance")
WINDOW = "5m"


def metric(name: str, **where: str) -> str:
    """`octavo_name{label="value"}`. A value that begins with ~ is a regular expression; labels that the table does not have raise KeyError."""
    definition = DEFINITIONS[name]
    for label in where:
        if label not in definition.labels:
            raise KeyError(f"{name} has no label {label}")
    return definition.exposed + _selector(where)


def rate(name: str, *, window: str = WINDOW, by: tuple[str, ...] = BY, **where: str) -> str:
    """Growth of a counter per second, summed by `by`."""
    return f"sum by ({', '.join(by)}) (rate({metric(name, **where)}[{window}]))"


def increase(name: str, *, window: str, **where: str) -> str:
    return f"sum by ({', '.join(BY)}) (increase({metric(name, **where)}[{window}]))"


def quantile(name: str, share: float, *, window: str = WINDOW, by: tuple[str, ...] = BY) -> str:
    """A quantile of a histogram."""
    if DEFINITIONS[name].kind != "histogram":
        raise KeyError(f"{name} is no histogram")
    return f"histogram_quantile({share:g}, sum by ({', '.join((*by, 'le'))}) (rate({metric(name)}_bucket[{window}])))"


def ratio(part: str, whole: str) -> str:
    """part / whole, and nothing where whole is 0."""
    return f"({part}) / ({whole} > 0)"


def _selector(where: dict[str, str]) -> str:
    parts = [f'{label}=~"{value[1:]}"' if value.startswith("~") else f'{label}="{value}"' for label, value in where.items()]
    return f"{{{', '.join(parts)}}}" if parts else ""
