"""From what compare.py measured to Markdown: our rows against each library's of the same scheme, and all checkpoints by size.

    python benchmarks/quality/table.py RESULTS.json [RESULTS.json ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# our method -> (the library, its name for the same method, or for one that spends more on the same scheme: where ours that spends as much is not there)
RIVALS = {"gptq": (("llmcompressor", "gptq"), ("gptqmodel", "gptq"), ("autoround", "signround")),
          "qep-gptq": (("llmcompressor", "gptq"), ("gptqmodel", "gptq"), ("autoround", "signround")), "autoround": (("autoround", "signround"),),
          "awq-rtn": (("llmcompressor", "awq"),), "awq-gptq": (("llmcompressor", "awq-gptq"),),
          "smoothquant-gptq": (("llmcompressor", "smoothquant-gptq"),), "smoothquant-rtn": (("llmcompressor", "smoothquant"),),
          "rtn": (("llmcompressor", "rtn"), ("autoround", "rtn"))}
# our scheme -> llama.cpp's types of about the same size
SIZES = {"w4g32": ("q4_0", "iq4_nl", "q4_k"), "w4g64": ("iq4_xs",), "w4g128": ("iq4_xs",), "w3g64": ("iq3_xxs", "q3_k"), "w3g128": ("iq3_xxs",),
         "w2g64z": ("iq2_xs", "iq2_s", "q2_k"), "w2g64": ("iq2_xs", "iq2_s", "q2_k")}


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """(ours, theirs) of the same method and scheme, and llama.cpp's coding of about the same size."""
    found = []
    learned = {row["scheme"] for row in rows if (row["library"], row["method"]) == ("octavo", "autoround")}
    for ours in rows:
        if ours["library"] == "octavo":
            rivals = RIVALS.get(ours["method"], ())
            if ours["method"] != "autoround" and ours["scheme"] in learned:
                rivals = tuple(one for one in rivals if one[1] != "signround")
            sizes = SIZES.get(ours["scheme"], ()) if ours["method"] in ("rtn", "gptq", "qep-gptq", "autoround") else ()
            found += [(ours, row) for row in rows if ((row["library"], row["method"]) in rivals and row["scheme"] == ours["scheme"])
                      or ((row["library"], row["method"]) == ("llamacpp", "folded") and row["scheme"] in sizes)]
    return found


def rival(row: Row) -> str:
    return f"llama.cpp {row['scheme'].upper()}, {row['bits']:.2f} bits" if row["library"] == "llamacpp" else f"{row['library']} {row['version'].split()[0]}"


def ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b else "-"


def timed(row: Row) -> bool:
    """Whether nothing else ran when it was made: what was made before that was noted down counts as disturbed."""
    return not row.get("busy", True)


def lines(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1), *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def markdown(result: dict[str, Any]) -> str:
    rows: list[Row] = result["rows"]
    if not rows:
        return ""
    first = rows[0]
    text = [f"### {result['model']}\n\n{result['windows']} windows of {result['context']} tokens of {result['text']}, {first['tokens']} tokens scored; "
            f"the original's perplexity is {first['original_perplexity']['value']:.3f}."
            + ("" if all(map(timed, rows)) else " No wall time stands where other work ran on the machine meanwhile.") + "\n"]
    against = []
    for ours, theirs in pairs(rows):
        against.append([f"{ours['method']} {ours['scheme']}", rival(theirs), str(theirs["rows"]), f"{ours['kl']['mean']:.4f}", f"{theirs['kl']['mean']:.4f}",
                        ratio(ours["kl"]["mean"], theirs["kl"]["mean"]), f"{ours['perplexity']['value']:.3f}", f"{theirs['perplexity']['value']:.3f}",
                        ratio(ours["peak_rss_mb"], theirs["peak_rss_mb"]), ratio(ours["wall_s"], theirs["wall_s"]) if timed(ours) and timed(theirs) else "-",
                        ratio(ours["cpu_s"], theirs["cpu_s"]) if "cpu_s" in ours and "cpu_s" in theirs else "-"])
    if against:
        text.append(lines(["ours", "against", "sequences", "KL, ours", "theirs", "ratio", "perplexity, ours", "theirs", "peak memory, ratio",
                           "wall time, ratio", "CPU time, ratio"], against))
    everything = []
    for row in sorted(rows, key=lambda row: (row["bits"], row["kl"]["mean"])):
        kl, change = row["kl"], row["perplexity_ratio"]["value"] - 1
        everything.append([row["name"], f"{row['bits']:.2f}", f"{kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}]",
                           f"{row['perplexity']['value']:.3f}", f"{change:+.1%}", f"{row['top1_agreement']['value']:.1%}", str(row["rows"]),
                           f"{row['peak_rss_mb']:,} MB", f"{row['wall_s']:.0f} s" if timed(row) else "-"])
    text.append(lines(["checkpoint", "bits per weight", "KL", "perplexity", "against original", "same top", "sequences", "peak memory",
                       "wall time"], everything))
    return "\n".join(text)


def main() -> None:
    print("\n".join(markdown(json.loads(Path(name).read_text())) for name in sys.argv[1:]))


if __name__ == "__main__":
    main()
