"""From gpu.json to tables, in a terminal and in docs/gpu-results.md. States what was measured and nothing else: a part that did not run has no line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BANDWIDTH, BEST = 0.80, 1.10            # W4A16 with one row: of the measured bandwidth, and against the best peer
RATE, AT_LEAST = 0.85, 1.00             # FP8 blocks and W8A8 with many rows: of the measured rate, or against the best peer; experts: against the best peer
DECODE = {"4bit": 2.8, "8bit": 1.7}     # of 16bit's tokens per second, one sequence
OUTSIDE, PEAK = 0.03, 0.10              # of a step outside kernels; of the quantized size beyond it while loading
NOISE = 0.005                           # of the perplexity, where its interval does not hold 1
OTHER_NUMBERS = 0.05                    # error from which on a peer computes something else
MOST_FAILURES = 20                      # that are shown

Record = dict[str, Any]


@dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()


def records(result: dict[str, Any], part: str) -> list[Record]:
    found: list[Record] = result.get("parts", {}).get(part, {}).get("records", [])
    return found


def tables(result: dict[str, Any], brief: bool = False) -> list[Table]:
    """What there is to show of each part that ran. brief: of products those that a bar is about."""
    made = [_bars(result), _checks(result), _ceilings(result), _peers(result, brief), _ways(result), _models(result), _overheads(result), _quality(result)]
    return [table for table in made if table.rows or table.notes]


# -- the bars --------------------------------------------------------------------------------------------------------------------------------

def _bars(result: dict[str, Any]) -> Table:
    """One line for each thing that was asked for, of what was measured."""
    rows = []
    if checks := [r for r in records(result, "check") if "checks" in r or "error" in r]:
        bad = [r for r in checks if "error" in r or r["failed"]]
        rows.append(["1. kernels against float64", f"{len(checks)} cases, {sum(r.get('checks', 0) for r in checks)} checks", "none fails",
                     f"{len(bad)} fail" if bad else "yes"])
    for what, (asked, judged) in _verdicts(result).items():
        met = sum(good for good, _ in judged)
        worst = min(judged, key=lambda one: one[1])[1]
        rows.append([f"2. {what}", f"{met} of {len(judged)} shapes; least times the best peer {worst:.2f}", asked, "yes" if met == len(judged) else "no"])
    for record in records(result, "model"):
        if record.get("what") == "decode" and record["batch"] == 1:
            for scheme, least in DECODE.items():
                if scheme in record.get("ratios", {}):
                    value = record["ratios"][scheme]
                    rows.append([f"3. decoding, {scheme} over 16bit", _spread(value), f">= {least}", _yes(value["median"] >= least)])
        if record.get("what") == "overhead" and record["batch"] == 1 and "outside_kernels" in record:
            rows.append([f"3. outside kernels, {record['scheme']}", f"{record['outside_kernels']:.1%}", f"< {OUTSIDE:.0%}",
                         _yes(record["outside_kernels"] < OUTSIDE)])
        if record.get("what") == "load" and record.get("peak"):
            over = record["peak"] / record["weights"] - 1
            rows.append([f"3. peak while loading, {record['scheme']}", f"{over:+.1%} of {record['weights'] / 1e9:.2f} GB", f"<= +{PEAK:.0%}",
                         _yes(over <= PEAK)])
    if alike := [r for r in records(result, "quality") if "perplexity_ratio" in r]:
        good = [_within_noise(r) for r in alike]
        rows.append(["4. quality as on the CPU", f"{sum(good)} of {len(good)}", "within noise", _yes(all(good))])
    return Table("What was asked for", ("line", "measured", "asked", "met"), rows)


def _verdicts(result: dict[str, Any]) -> dict[str, tuple[str, list[tuple[bool, float]]]]:
    """What -> (the bar, [(it holds, ratio to the best peer) of each shape])."""
    ceiling = ceilings(result)
    found: dict[str, tuple[str, list[tuple[bool, float]]]] = {}
    for case, row in products(result):
        best, (share, _), bar = best_peer(row), share_of(row, case, ceiling), bar_of(case, row)
        if best is None or bar is None:
            continue
        what, asked, needed, times, both = bar
        parts = (not needed or (share is not None and share >= needed), best[1] >= times)
        found.setdefault(what, (asked, []))[1].append((all(parts) if both else any(parts), best[1]))
    return found


def bar_of(case: Record, row: Record) -> tuple[str, str, float, float, bool] | None:
    """(what, the bar in words, share of the ceiling, times the best peer, both are asked or one of them) of a product, None where none was set."""
    if case["kind"] == "experts":
        return "MXFP4 experts", f">= {AT_LEAST:.1f}x the best peer", 0.0, AT_LEAST, True
    if case["precision"] == "W4A16" and row["rows"] == 1:
        return "W4A16, one row", f">= {BANDWIDTH:.0%} of bandwidth and >= {BEST}x", BANDWIDTH, BEST, True
    if case["precision"] in ("FP8 blocks", "W8A8") and row["rows"] == 4096:
        return f"{case['precision']}, 4096 rows", f">= {RATE:.0%} of the rate or >= {AT_LEAST:.1f}x", RATE, AT_LEAST, False
    return None


def products(result: dict[str, Any]) -> Iterator[tuple[Record, Record]]:
    """(case, one number of rows) of everything that was timed."""
    for case in records(result, "peers"):
        for row in case.get("rows_found", []):
            yield case, row


def ceilings(result: dict[str, Any]) -> dict[str, float]:
    """Measured bytes and operations per second: "memory", "bf16", "fp8", "int8"."""
    found: dict[str, float] = next((r["ceilings"] for r in records(result, "peers") if r.get("ceilings")), {})
    best = {"memory": ("copy", "read"), "fp8": ("fp8", "fp8 exact sums"), "bf16": ("bf16",), "int8": ("int8",)}
    return {name: max(found[key] for key in keys if key in found) for name, keys in best.items() if any(key in found for key in keys)}


def share_of(row: Record, case: Record, ceiling: dict[str, float]) -> tuple[float | None, str]:
    """(share of the ceiling that comes nearest, the number in words): bytes per second, or operations per second of the units that run."""
    seconds, precision = row["seconds"]["median"], case.get("precision", "")
    units = "int8" if precision in ("W8A8", "W4A8") else "fp8" if "fp8" in precision.lower() else "bf16"
    bytes_rate, rate = row["bytes"] / seconds, row["operations"] / seconds
    shares = {name: value / ceiling[name] for name, value in (("memory", bytes_rate), (units, rate)) if name in ceiling}
    if not shares:
        return None, f"{bytes_rate / 1e9:.0f} GB/s"
    name = max(shares, key=lambda one: shares[one])
    return shares[name], f"{bytes_rate / 1e9:.0f} GB/s" if name == "memory" else f"{rate / 1e12:.0f} T{'' if units == 'int8' else 'FL'}OPS"


def best_peer(row: Record) -> tuple[str, float] | None:
    """(name, our ratio to it) of the peer that is hardest to beat, of those that compute the same numbers."""
    sound = {name: peer["ratio"]["median"] for name, peer in row["peers"].items() if _sound(peer)}
    name = min(sound, key=lambda one: sound[one], default=None)
    return None if name is None else (name, sound[name])


def _within_noise(record: Record) -> bool:
    ratio = record["perplexity_ratio"]
    low, high = ratio.get("low"), ratio.get("high")
    return (low is not None and high is not None and low <= 1 <= high) or abs(ratio["value"] - 1) <= NOISE


def _yes(good: bool) -> str:
    return "yes" if good else "no"


def _spread(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['median']:.{digits}f} ({value['min']:.{digits}f} to {value['max']:.{digits}f})"


# -- each part -------------------------------------------------------------------------------------------------------------------------------

def _checks(result: dict[str, Any]) -> Table:
    """Only what fails."""
    bad = [r for r in records(result, "check") if "error" in r or r.get("failed")]
    rows = [[r["id"], r.get("error") or "; ".join(r["failed"])[:300]] for r in bad[:MOST_FAILURES]]
    return Table("Kernels that are wrong", ("case", "what"), rows, (f"{len(bad) - MOST_FAILURES} more",) if len(bad) > MOST_FAILURES else ())


def _ceilings(result: dict[str, Any]) -> Table:
    found: dict[str, float] = next((r["ceilings"] for r in records(result, "peers") if r.get("ceilings")), {})
    rows = [[name, f"{value / 1e9:.0f} GB/s" if name in ("copy", "read") else f"{value / 1e12:.0f} T{'' if name == 'int8' else 'FL'}OPS"]
            for name, value in found.items()]
    return Table("Ceilings, measured in the same run", ("what", "rate"), rows)


def _peers(result: dict[str, Any], brief: bool) -> Table:
    ceiling = ceilings(result)
    rows = []
    for case, row in products(result):
        if brief and bar_of(case, row) is None:
            continue
        share, rate = share_of(row, case, ceiling)
        best = best_peer(row)
        others = ", ".join(f"{name} {_spread(peer['ratio'])}{'' if _sound(peer) else ' (other numbers)'}" for name, peer in row["peers"].items())
        rows.append([case.get("precision", "MXFP4 experts"), case["shape"], str(row["rows"]), f"{row['seconds']['median'] * 1e6:.1f}", rate,
                     "" if share is None else f"{share:.0%}", "" if best is None else f"{best[1]:.2f} ({best[0]})", others])
    refused = {why: name for r in records(result, "peers") for name, why in r.get("refused", {}).items()}
    failed = [f"{r['id']}: {r['error']}" for r in records(result, "peers") if "error" in r]
    return Table("Products against peers", ("precision", "shape", "rows", "us", "rate", "of the ceiling", "times the best peer", "times each peer"), rows,
                 (*(f"{name}: {why}" for why, name in refused.items()), *failed))


def _ways(result: dict[str, Any]) -> Table:
    rows = []
    for record in records(result, "ways"):
        if ways := record.get("ways"):
            best = sorted(ways, key=lambda name: -ways[name]["ratio"]["median"])[:3]
            rows.append([record["precision"], record["shape"], str(record["rows"][0]), f"{ways['usual']['seconds']['median'] * 1e6:.1f}",
                         ", ".join(f"{name} {_spread(ways[name]['ratio'])}" for name in best)])
    failed = tuple(f"{r['id']}: {r['error']}" for r in records(result, "ways") if "error" in r)
    return Table("The same products in other ways", ("precision", "shape", "rows", "usual us", "times as fast as usual, the best three"), rows, failed)


def _sound(peer: Record) -> bool:
    return not peer["alike"] or peer["error"] <= OTHER_NUMBERS


def _models(result: dict[str, Any]) -> Table:
    rows = []
    for record in records(result, "model"):
        for scheme, rate in record.get("tokens_per_second", {}).items():
            ratio = record["ratios"].get(scheme)
            rows.append([str(record["batch"]), scheme, record.get("plans", {}).get(scheme, ""), _spread(rate, 0), "" if ratio is None else _spread(ratio)])
    loads = tuple(f"{r['scheme']} ({r['plan']}): {r['weights'] / 1e9:.2f} GB of weights loaded in {r['load_seconds']:.1f} s" +
                  (f", at most {r['peak'] / 1e9:.2f} GB on the way" if r.get("peak") else "") for r in records(result, "model") if r.get("what") == "load")
    failed = tuple(f"{r['id']}: {r['error']}" for r in records(result, "model") if "error" in r)
    return Table("Decoding a model of Llama-3-8B's shape", ("sequences", "precision", "plan", "tokens/s", "over 16bit"), rows, loads + failed)


def _overheads(result: dict[str, Any]) -> Table:
    rows = []
    for r in records(result, "model"):
        if "graph" in r:
            kernels = [f"{r['kernels'] * 1e6:.0f}", f"{r['outside_kernels']:.1%}", f"{r['launches']:.0f}",
                       "; ".join(f"{name} {part:.0%}" for name, part in r["largest"])] if "kernels" in r else ["", "", "", r["note"]]
            rows.append([r["scheme"], str(r["batch"]), f"{r['step'] * 1e6:.0f}", f"{r['graph'] * 1e6:.0f}", f"{r['outside_graph']:.1%}", *kernels])
    return Table("A decoding step", ("precision", "sequences", "step us", "graph us", "outside the graph", "kernels us", "outside kernels", "kernels a step",
                                     "largest shares"), rows)


def _quality(result: dict[str, Any]) -> Table:
    rows = [[r["model"], r["scheme"], r["against"], f"{r['perplexity']['value']:.3f}", f"{r['original_perplexity']['value']:.3f}",
             f"{r['perplexity_ratio']['value'] - 1:+.3%}", f"{r['kl']['mean']:.2e}", f"{r['top1_agreement']['value']:.1%}", _yes(_within_noise(r))]
            for r in records(result, "quality") if "perplexity_ratio" in r]
    failed = tuple(f"{r['id']}: {r['error']}" for r in records(result, "quality") if "error" in r)
    head = ("model", "precision", "CPU kernels", "perplexity, GPU", "CPU", "difference", "KL, nats", "same top", "within noise")
    return Table("The same model on GPU and CPU", head, rows, failed)


# -- where it goes ---------------------------------------------------------------------------------------------------------------------------

def measured(result: dict[str, Any]) -> str:
    """Where and when each part ran."""
    where: dict[str, list[str]] = {}
    for name, part in result.get("parts", {}).items():
        c = part.get("circumstances", {})
        text = f"{c.get('gpu', 'unknown')}, driver {c.get('driver', 'unknown')}, " + ", ".join(
            f"{key} {value}" for key, value in c.get("versions", {}).items()) + f", commit {c.get('commit', 'unknown')}, {c.get('date', '')}"
        left = f", {part['left_out']} cases left out for lack of time" if part.get("left_out") else ""
        where.setdefault(text, []).append(f"{name} ({part.get('took', 0):.0f} s{left})")
    return "\n".join(f"{'; '.join(names)}: {text}." for text, names in where.items())


def markdown(result: dict[str, Any]) -> str | None:
    """docs/gpu-results.md, or None where nothing was measured."""
    from comparison import table

    found = tables(result)
    if not found:
        return None
    parts = ["# Measured on an NVIDIA GPU\n\nWritten by `benchmarks/gpu.py` from `benchmarks/results/gpu.json`; the script says how it measures.\n",
             measured(result) + "\n"]
    for one in found:
        parts.append(f"## {one.title}\n\n{table(list(one.head), [[cell.replace('|', '/') for cell in row] for row in one.rows])}")
        if one.notes:
            parts.append("\n".join(f"- {note}" for note in one.notes) + "\n")
    return "\n".join(parts)


def write(results: Path, target: Path) -> bool:
    """The page from stored results; False where there are none."""
    found = markdown(json.loads(results.read_text())) if results.exists() else None
    if found is not None:
        target.write_text(found)
    return found is not None


def text(result: dict[str, Any]) -> str:
    """The same for a terminal, what was asked for last."""
    lines = []
    for one in reversed(tables(result, brief=True)):
        widths = [max(len(row[at]) for row in [list(one.head), *one.rows]) for at in range(len(one.head) - 1)]
        lines += ["", one.title] + ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]) for row in [list(one.head), *one.rows]]
        lines += [f"  {note}" for note in one.notes]
    return "\n".join(lines)
