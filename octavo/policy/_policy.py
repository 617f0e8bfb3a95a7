"""Policy: the choices that were measured to be better than the defaults, and under what they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UsageError

FORMAT = "octavo policy 1"
EXPECTED = "a file written by `octavo tune`"


@dataclass(frozen=True)
class Gain:
    """Speed over the default's as a fraction (0.1: a tenth faster), with the ends of its confidence interval."""

    gain: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class KernelChoice:
    """`kernel` instead of `default` for linears like `problem` (n, k, weights, group ...) in the bucket of steps of up to `rows` rows."""

    problem: Mapping[str, Any]
    rows: int
    kernel: str
    default: str
    gain: Gain


@dataclass(frozen=True)
class Policy:
    """What differs from the defaults; None and () are the defaults.

    fingerprint       what the measurements depend on: model shapes, scheme, CPU features, cores, versions (see loading.fingerprint)
    kernels           choices of kernels; all kernels of an instruction set give the same bits
    threads           of the kernels
    max_batch_tokens  rows of a step
    max_batch         sequences computed together
    kv_cache          format of the key-value cache; only ever set when the user allowed it
    confirmed         the whole policy against the defaults, end to end: what was run -> gain
    measured          every question of the search and its answer, for people to read
    """

    fingerprint: Mapping[str, Any]
    kernels: tuple[KernelChoice, ...] = ()
    threads: int | None = None
    max_batch_tokens: int | None = None
    max_batch: int | None = None
    kv_cache: str | None = None
    confirmed: Mapping[str, Gain] = field(default_factory=dict)
    measured: tuple[Mapping[str, Any], ...] = ()
    made: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The choices other than kernels that differ from the defaults."""
        chosen = {"threads": self.threads, "max_batch_tokens": self.max_batch_tokens, "max_batch": self.max_batch, "kv_cache": self.kv_cache}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def empty(self) -> bool:
        """Whether everything stays as it is."""
        return not self.kernels and not self.settings

    def stale(self, now: Mapping[str, Any]) -> str | None:
        """Why this policy was not measured under the fingerprint `now`; None when it was."""
        return difference(self.fingerprint, now)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "made": self.made, "fingerprint": dict(self.fingerprint), "settings": self.settings,
            "kernels": [asdict(choice) for choice in self.kernels],
            "confirmed": {what: asdict(gain) for what, gain in self.confirmed.items()}, "measured": [dict(row) for row in self.measured],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], where: str = "policy") -> Policy:
        """The inverse of to_json. Raises UsageError for anything else."""
        if data.get("format") != FORMAT:
            raise UsageError(f"the format is {str(data.get('format'))[:40]!r}, not {FORMAT!r}", where=where, remedy=f"expected {EXPECTED}")
        try:
            settings = dict(data["settings"])
            kernels = tuple(
                KernelChoice(dict(c["problem"]), _count(c["rows"]), str(c["kernel"]), str(c["default"]), _gain(c["gain"])) for c in data["kernels"])
            policy = Policy(
                dict(data["fingerprint"]), kernels, threads=_optional(settings.pop("threads", None)),
                max_batch_tokens=_optional(settings.pop("max_batch_tokens", None)), max_batch=_optional(settings.pop("max_batch", None)),
                kv_cache=None if (kv := settings.pop("kv_cache", None)) is None else str(kv),
                confirmed={str(what): _gain(gain) for what, gain in data["confirmed"].items()}, measured=tuple(dict(row) for row in data["measured"]),
                made=str(data.get("made", "")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"a field is missing or wrong: {error!r}", where=where, remedy=f"expected {EXPECTED}") from None
        if settings:
            raise UsageError(f"unknown settings: {', '.join(sorted(map(str, settings)))}", where=where, remedy=f"expected {EXPECTED}")
        return policy


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first facts in which two fingerprints differ, in words; None when they are equal."""
    different = [name for name in [*now, *(name for name in then if name not in now)] if then.get(name) != now.get(name)]
    if not different:
        return None
    parts = [f"{name} was {_brief(then.get(name))}, is {_brief(now.get(name))}" for name in different[:3]]
    more = len(different) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def _brief(value: Any) -> str:
    if value is None:
        return "not recorded"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _gain(data: Mapping[str, Any]) -> Gain:
    return Gain(float(data["gain"]), float(data["low"]), float(data["high"]), int(data["pairs"]))


def _optional(value: Any) -> int | None:
    return None if value is None else _count(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{value!r} is no whole number above 0")
    return value
