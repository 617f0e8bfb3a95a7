"""Rows of the comparison with other engines: what each field means, the bars, and the tables of docs/performance.md.

One row compares Octavo with one peer at one thing:

    what, model, scheme    "decode batch 1", "SmolLM2-135M", "4bit": what Octavo ran
    peer_name              engine and its form of the weights: "llama.cpp Q4_0"
    ours, peer, unit       medians over the pairs
    ratio                  ours / peer, median of the pairs' ratios; ratio_min and ratio_max are the smallest and the largest of them
    better                 "higher" (the default: rates) or "lower" (seconds, bytes)
    bar, aim               optional: the ratio asked for against this very peer; without them BARS holds what is asked against the best
    pairs, bits_ours, bits_peer, peer_version, peer_setting, threads, date, commit, machine: circumstances
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

FIELDS = ("what", "model", "scheme", "ours", "peer", "peer_name", "ratio", "ratio_min", "ratio_max")
SCHEMES = ("4bit", "8bit", "16bit")
MODELS = ("SmolLM2-135M", "TinyLlama-1.1B-shape")
# (what, model) -> (bar, aim) of the ratio to the best peer, for weights of 4 and 8 bits.
BARS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("decode batch 1", MODELS[0]): (1.8, 2.3), ("decode batch 1", MODELS[1]): (1.2, 1.3),
    ("prefill 512", MODELS[0]): (2.5, 3.5), ("prefill 512", MODELS[1]): (2.5, 3.5),
    ("prefill 2048", MODELS[0]): (2.5, 4.0), ("prefill 2048", MODELS[1]): (2.5, 4.0),
    ("decode 16 users", MODELS[0]): (7.0, 10.0), ("decode 32 users", MODELS[0]): (8.0, 10.0),
    ("decode 16 users", MODELS[1]): (4.0, None), ("decode 32 users", MODELS[1]): (5.0, None),
}
WHATS = tuple(dict.fromkeys(what for what, _ in BARS))

DISTURBED = 0.1  # share of the machine that other programs took during a run that counts: such a row is marked


def check(row: Row) -> None:
    """ValueError when a row lacks a field or its ratio lies outside its own spread."""
    if missing := [field for field in FIELDS if field not in row]:
        raise ValueError(f"row {row.get('what')!r} against {row.get('peer_name')!r} lacks {', '.join(missing)}")
    if not row["ratio_min"] <= row["ratio"] <= row["ratio_max"]:
        raise ValueError(f"row {key(row)}: ratio {row['ratio']} outside {row['ratio_min']} to {row['ratio_max']}")


def key(row: Row) -> tuple[str, str, str, str]:
    return row["what"], row["model"], row["scheme"], row["peer_name"]


def order(row: Row) -> tuple[Any, ...]:
    """Sorts rows by model, number of bits, what, peer: the known ones in the order of the tables, others after them by name."""

    def place(name: str, known: tuple[str, ...]) -> tuple[int, str]:
        return (known.index(name), "") if name in known else (len(known), name)

    return place(row["model"], MODELS), place(row["scheme"], SCHEMES), place(row["what"], WHATS), row["peer_name"]


def best(rows: list[Row]) -> Row:
    """The row of the peer that is hardest to beat."""
    lower = rows[0].get("better") == "lower"
    return (max if lower else min)(rows, key=lambda row: row["ratio"])


def bar(row: Row) -> tuple[float | None, float | None]:
    if "bar" in row:
        return row["bar"], row.get("aim")
    return BARS.get((row["what"], row["model"]), (None, None)) if row["scheme"] != "16bit" else (None, None)


def verdict(row: Row) -> str:
    """Whether the median ratio of this row keeps its bar: "aim", "yes", "no", or nothing where no bar was set."""
    wanted, aim = bar(row)
    if wanted is None:
        return ""
    sign = -1 if row.get("better") == "lower" else 1
    if aim is not None and sign * row["ratio"] >= sign * aim:
        return "aim"
    return "yes" if sign * row["ratio"] >= sign * wanted else "no"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sections(rows: list[Row]) -> list[str]:
    """Markdown: one table per model, then how each engine held the weights and was set."""
    days = sorted({row["date"] for row in rows if "date" in row})
    commits = list(dict.fromkeys(row["commit"] for row in rows if "commit" in row))
    machines = list(dict.fromkeys(row["machine"] for row in rows if "machine" in row))
    several = len(machines) > 1
    named = {machine: f"{chr(ord('A') + i)}, {machine}" if several else machine for i, machine in enumerate(machines)}
    threads = " or ".join(sorted({f"{row['threads']}" for row in rows if "threads" in row})) or "As many"
    parts = [f"""## Against other engines

Measured {', '.join(days)} at commit {', '.join(commits)} on: {'; '.join(named.values())}. {threads} threads each, the
same prompts, in turn. Medians over pairs of runs; a ratio is Octavo's number over the peer's (of rates more is better, of seconds and bytes
less). The bar is the ratio that the project set itself; "disturbed" means that other programs took more than a tenth of the machine in one of
the runs that count, which proves no bar. How: `benchmarks/peers.py`; how each engine was set: below.
"""]
    for model in dict.fromkeys(row["model"] for row in sorted(rows, key=order)):
        parts.append(f"### {model}\n")
        lines = []
        mine = sorted((row for row in rows if row["model"] == model), key=order)
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in mine:  # a bar of its own is one against this peer, not against the best; machines are not compared
            groups.setdefault((row["scheme"], row["what"], row["peer_name"] if "bar" in row else "", row.get("machine", "")), []).append(row)
        for (scheme, what, _, machine), group in groups.items():
            top = best(group)
            wanted, aim = bar(top)
            met = verdict(top)
            if met and any(row.get("others", 0) > DISTURBED for row in group):  # peers that wait by spinning lose more than Octavo does
                met = "no (disturbed)" if met == "no" else "unproven (disturbed)"
            sign = "<= " if top.get("better") == "lower" else ""
            on = [named.get(machine, "")[:1]] if several else []
            lines.append([what, *on, scheme, f"{number(top['ours'])} {top.get('unit', '')}".strip(), f"{top['peer_name']} {number(top['peer'])}",
                          f"**{top['ratio']:.2f}** ({top['ratio_min']:.2f} to {top['ratio_max']:.2f})",
                          "" if wanted is None else f"{sign}{wanted:g}", "" if aim is None else f"{sign}{aim:g}", met,
                          ", ".join(f"{row['peer_name']} {row['ratio']:.2f}" for row in group)])
        head = ["what", *(["on"] if several else [])]
        parts.append(table([*head, "weights", "Octavo", "best peer", "ratio to it", "bar", "aim", "met", "ratio to each peer"], lines))
    settings = {}
    for row in sorted(rows, key=order):
        bits = [f"{row[field]:.2f}" if row.get(field) else "" for field in ("bits_peer", "bits_ours")]
        settings[row["model"], row["peer_name"]] = [row["model"], row["peer_name"], *bits, row.get("peer_version", ""), row.get("peer_setting", "")]
    parts.append("### How each engine was set\n\nBits per weight count scales, embedding and head (file or weights in memory over the number of weights).\n")
    parts.append(table(["model", "peer", "its bits", "our bits", "version", "setting"], list(settings.values())))
    return parts


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
