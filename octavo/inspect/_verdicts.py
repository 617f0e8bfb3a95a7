"""Will it load elsewhere? Yes or no with the reason, from the table of rules; "unknown" where the table does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..checkpoints import Checkpoint
from ._engines import ENGINES, Engine, Rule
from ._facts import Facts


@dataclass(frozen=True)
class Verdict:
    """answer: "yes", "no" or "unknown"; why is never empty. version and checked: of the rules."""

    engine: str
    answer: str
    why: str
    version: str
    checked: str
    source: str

    def to_json(self) -> dict[str, str]:
        return dict(vars(self))


def verdicts(checkpoint: Checkpoint, facts: Facts) -> list[Verdict]:
    return [_verdict(engine, checkpoint, facts) for engine in ENGINES]


def _verdict(engine: Engine, checkpoint: Checkpoint, facts: Facts) -> Verdict:
    rule = engine.formats.get(facts.format)

    def say(answer: str, why: str) -> Verdict:
        return Verdict(engine.name, answer, why, engine.version, engine.checked, rule.source if rule is not None else "")

    if rule is None:
        if engine.formats.keys() == {"gguf"}:
            return say("no", "it reads GGUF only: octavo convert ... --to gguf:TYPE")
        return say("no", engine.refusals.get(facts.format, f"it does not read {facts.format}"))
    reasons = list(_reasons(rule, checkpoint, facts))
    if reasons:
        return say("no", "; ".join(reasons))
    if facts.model_type not in engine.families:
        return say("unknown", f"the format is read; whether model_type {facts.model_type} is known there is not in this table")
    return say("yes", f"{facts.format} of {facts.scheme or 'nothing'} is read" + (f" ({rule.note})" if rule.note else ""))


def _reasons(rule: Rule, checkpoint: Checkpoint, facts: Facts) -> Iterator[str]:
    """Everything that speaks against it."""
    quantized = [info for info in checkpoint.tensors.values() if info.spec is not None and info.spec.quantized and len(info.shape) == 2]
    specs = {info.spec for info in quantized if info.spec is not None}
    integers = [spec for spec in specs if spec.format.startswith("int")]
    if rule.bits is not None and (bits := sorted({spec.bits for spec in integers} - set(rule.bits))):
        yield f"{_list(bits)} bits, it reads {_list(rule.bits)}"
    if rule.groups is not None:
        sizes = {-1 if spec.granularity == "channel" else spec.size for spec in integers if spec.granularity in ("channel", "group")}
        whole = {info.shape[1] for info in quantized}
        if odd := sorted(sizes - set(rule.groups) - (whole if len(whole) == 1 else set())):
            yield f"groups of {_list(odd)}, its kernels take {', '.join('whole rows' if size < 0 else str(size) for size in rule.groups)}"
    if rule.symmetric and any(not spec.symmetric for spec in integers) and facts.quantization.get("sym") is not True:
        yield "zero points (sym is false), it reads symmetric weights only"
    if not rule.act_order and facts.quantization.get("desc_act"):
        yield "act-order (desc_act), which its kernels do not read"
    if rule.algorithms is not None and (algorithm := _algorithm(facts)) and algorithm not in rule.algorithms:
        yield f"quant_algo {algorithm}, it reads {', '.join(rule.algorithms)}"
    cache = facts.quantization.get("kv_cache_scheme")
    if rule.caches is not None and isinstance(cache, dict) and cache.get("strategy") not in rule.caches:
        yield f"a key-value cache with scales per {cache.get('strategy')}, it reads stored ones: {' or '.join(rule.caches)} (Cfp8ts, Cfp8s)"
    if rule.types is not None and (odd_types := sorted({info.stored for info in checkpoint.tensors.values()} - set(rule.types))):
        yield f"tensors of type {_list(odd_types)}, which its kernels do not read"


def _algorithm(facts: Facts) -> str:
    said: Any = facts.quantization
    inner = said.get("quantization")
    return str((inner if isinstance(inner, dict) else said).get("quant_algo") or "").upper()


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
