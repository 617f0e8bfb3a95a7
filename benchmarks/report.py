"""From measured numbers to what the docs show: benchmarks/results/*.json -> docs/performance.md and docs/quality.md.

    python benchmarks/report.py        # writes both again from the stored results
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import comparison
from comparison import table
from quality.table import markdown as against

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


AGAINST = """## Against the reference libraries

Octavo's `quantize` and each library's own quantizer, on the same original, the same scheme and the same calibration tokens (sequences of 512 tokens,
how they are cut: `benchmarks/quality/calibration_ids.py`), measured by one harness (`benchmarks/quality/compare.py`): Octavo loads every
checkpoint, weights exactly as stored, 8-bit activations where the scheme has them. Embedding and head stay unquantized for all. KL: nats per token,
with its 95% interval. The libraries compute in float32; on the Zen 4, which has bfloat16 instructions, llm-compressor's GPTQ in 4 bits takes 0.88 of
that time in bfloat16, with KL 0.190.
`folded-TYPE` is llama.cpp's coding of the type with its importance matrix, rows joined to a multiple of 256 (at 576 and 640 columns llama-quantize falls
back to other types; `imatrix-TYPE` is what it makes of the model as it is). Our `rtn w4g32` is weighted by the inputs of the same tokens, too
(`--set rtn.importance=mean_square`). Learned rounding: 50 steps of 4 sequences of theirs, 3 of 4 of ours, which begins at what `qep-gptq` gives. `qep-gptq`
has no counterpart in the libraries and stands against their GPTQ. Rows of 32 and 8 sequences are from a quiet machine, one after the other (ours of SmolLM2 in
2 and 3 bits, W4A8 and after `qep` with a compiler at the lowest priority beside them: slower, if anything), but for
those without a wall time, and llm-compressor's `awq` on SmolLM2, which is from a Zen 3 with AVX2 (quiet, too). Two threads for all. The wall time of Q4_0 holds
llama.cpp's importance matrix, as ours does; those of its other types do not, it was there already. Again: `make bench-quality`.
"""


def save(name: str, result: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def stored(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def peer_rows() -> list[dict[str, Any]]:
    """The rows of peers.json; see `comparison.py` for their fields."""
    path = RESULTS / "peers.json"
    return json.loads(path.read_text()) if path.exists() else []


def merge_rows(rows: list[dict[str, Any]]) -> None:
    """Put measured rows into peers.json in place of those of the same (what, model, scheme, peer_name), and write docs/performance.md again.

    A row that does not say when and where it was measured gets what holds now.
    """
    for row in rows:
        comparison.check(row)
    now = circumstances()
    merged = {comparison.key(row): row for row in peer_rows()}
    merged |= {comparison.key(row): {**now, **row} for row in rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(sorted(merged.values(), key=comparison.order), indent=1) + "\n")
    write_performance()


def circumstances(**more: Any) -> dict[str, Any]:
    """When, with which code and on what the numbers were measured. A + after the commit: with changes that were not committed."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":", 1)[1].strip() for line in about if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in about if line.startswith("flags")), [])
    isa = ", ".join(name.upper() for name in ("avx2", "avx512_vnni", "amx_int8") if name in flags) or "none of AVX2, VNNI, AMX"
    changed = "+" if _git("status", "--porcelain", "octavo", "csrc") else ""
    return {"date": datetime.date.today().isoformat(), "commit": _git("rev-parse", "--short", "HEAD") + changed,
            "machine": f"{cpu}, {os.cpu_count()} cores, {isa}", "load": round(os.getloadavg()[1], 2), **more}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _measured(result: dict[str, Any]) -> str:
    return f"Measured {result['date']} at commit {result['commit']} on: {result['machine']}."


def write_performance() -> None:
    """docs/performance.md from what has been measured so far."""
    parts = ["# Performance\n\nWritten by the scripts in `benchmarks/`; each one says how it measures, each section where and when.\n"]
    if rows := peer_rows():
        parts += comparison.sections(rows)
    if (loading := stored("loading")) is not None:
        rows = [[row["scheme"], *(f"{row[key] / 1e6:.0f}" for key in ("predicted", "peak", "quantized", "bound")),
                 *(f"{row[key]:.2f}" for key in ("first", "second")), f"**{row['first'] / row['second']:.1f}**",
                 f"{row['first_process']:.2f}, {row['second_process']:.2f}"] for row in loading["rows"]]
        parts.append(f"""## Loading

{_measured(loading)} Model: {loading['model']}, {loading['threads']} threads, best of {loading['repeats']}. Memory in MB: the peak of the
process as announced before loading, as measured (VmHWM of a fresh process, one token computed), and the bound it has to keep: quantized
size + largest tensor in 16 bits + 300 MB. Seconds: the first start quantizes and fills the cache, the second maps what was kept; "load" is from the
call to a model that can answer, "process" from the start of Python to the first logits. How: `benchmarks/loading.py`.
""")
        parts.append(table(["weights", "announced", "measured", "quantized size", "bound", "first load s", "second load s", "times faster",
                            "process s, s"], rows))
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "performance.md").write_text("\n".join(parts))


def _calibration(result: dict[str, Any]) -> str:
    theirs, ours = ({row["library"]: row for row in result["rows"]}[name] for name in ("gptqmodel", "octavo"))
    rows = [[f"{row['library']} {row['version']}", f"{row['wall_s']:.0f}", f"{row['cpu_s']:.0f}", str(row["peak_rss_mb"])] for row in (ours, theirs)]
    rows.append(["ratio", *(f"**{ours[key] / theirs[key]:.2f}**" for key in ("wall_s", "cpu_s", "peak_rss_mb"))])
    about = (f"{result['model'][0].upper()}{result['model'][1:]}; {ours['scheme']}, {ours['rows']} sequences of {ours['length']} tokens, "
             f"{ours['threads']} threads")
    note = f" ({result['note']})" if result.get("note") else ""
    return f"""## A larger model

{about}, one after the other{note}.
{_measured(result)} How: `benchmarks/quality/half_billion.py`.

""" + table(["GPTQ by", "seconds", "processor seconds", "peak memory, MB"], rows)


def write_quality() -> None:
    """docs/quality.md from what has been measured so far."""
    result = stored("quality")
    if result is None:
        return
    parts = [f"""# Quality

How much of the model is left after quantizing, each scheme by round to nearest as `--quantization` does it online.

{_measured(result)}

Text: {result['text']} ({result['context']} tokens a window, the first windows of the text without overlap, every token but a window's first
is scored; how exactly: `octavo/quality/perplexity.py`, tested against transformers). Each scheme saw the same windows, so the ratio to
16bit and the divergence are paired; brackets hold 95% intervals (docs/evaluate.md).
KL: nats per token that the
scheme's next-token distribution lies from 16bit's. Same top: how often both would choose the same token. Bits per weight
count scales, embedding and head (which stay at 8 bits at least). How: `benchmarks/online_quality.py`.
"""]
    for model in result["models"]:
        rows = []
        for row in model["rows"]:
            change = f"{row['ratio'] - 1:+.2%} [{row['ratio_low'] - 1:+.2%}, {row['ratio_high'] - 1:+.2%}]" if row is not model["rows"][0] else ""
            rows.append([row["name"], row["scheme"], f"{row['bits']:.2f}", f"{row['perplexity']:.3f} [{row['low']:.2f}, {row['high']:.2f}]", change,
                         f"{row['kl']:.4f}", f"{row['same_top']:.1%}"])
        parts.append(f"## {model['model']}\n\n{model['note'].rstrip('.')}. {model['windows']} windows, {model['tokens']} tokens scored.\n")
        parts.append(table(["name", "scheme", "bits per weight", "perplexity", "against 16bit", "KL", "same top"], rows))
    parts.append(AGAINST)
    parts += [against(json.loads(path.read_text())) for path in sorted(RESULTS.glob("quality-*.json"))]
    if (larger := stored("calibration")) is not None:
        parts.append(_calibration(larger))
    (ROOT / "docs").mkdir(exist_ok=True)
    (ROOT / "docs" / "quality.md").write_text("\n".join(parts))


if __name__ == "__main__":
    write_performance()
    write_quality()
