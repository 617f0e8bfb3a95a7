"""What checkpoints of one original have lost, by one harness: perplexity and KL divergence on the same windows of a text.

    python benchmarks/quality/compare.py ORIGINAL FOLDERS --text FILE --out RESULTS.json [--windows 16] [--context 512]

FOLDERS holds one checkpoint a folder, named LIBRARY-METHOD-SCHEME, as the drivers beside this file make them; ours are octavo-METHOD-SCHEME. Octavo
loads each: weights exactly as stored, activations as the checkpoint says (8 bits for w8a8 and w4g128a8). Several step through the text beside
the original, whose logits are computed once for them. What RESULTS.json holds already is not measured again (--again NAME does). Writes RESULTS.json
and a Markdown table beside it, in which every folder of ours is held against each library's of the same method and scheme.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from table import markdown

from octavo.layers import declare
from octavo.loading import LoadedModel, load
from octavo.quality import compare_all, windows_of

TOGETHER = 3  # models beside the original: 150 to 550 MB each


def bits_per_weight(model: LoadedModel) -> float:
    """Bits of a weight of the layers' matrices on average, scales included; embedding and head do not count."""
    numbers = size = 0
    for want in declare(model.model.describe).wanted.values():
        if want.uses and ".layers." in want.name and (scheme := model.plan.scheme_for(want.name)) is not None:
            numbers += math.prod(want.shape)
            size += scheme.weight.packed_bytes(want.shape)
    return 8 * size / numbers


def opened(folder: Path) -> LoadedModel:
    gguf = next(iter(folder.glob("*.gguf")), None)
    plain = gguf is None and "quantization_config" not in json.loads((folder / "config.json").read_text())
    return load(gguf or folder, quantization="32bit" if plain else None, use_cache=False)


def measure(original: LoadedModel, folders: list[Path], text: str, context: int, count: int) -> list[dict[str, Any]]:
    models = [opened(folder) for folder in folders]
    windows = windows_of(original, text, context=context, windows=count)
    rows = []
    for folder, model, found in zip(folders, models, compare_all(original, models, windows), strict=True):
        about = json.loads((folder / "result.json").read_text())
        bits = about["settings"].pop("bits", None) or bits_per_weight(model)
        rows.append({"name": folder.name, **about, "bits": round(bits, 3), "plan": str(model.plan.default), **found.to_json()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("folders", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--only", nargs="*", default=[], help="names; default: all")
    parser.add_argument("--again", nargs="*", default=[], help="names to measure again")
    parser.add_argument("--note", default="", help="of the model, for the table")
    options = parser.parse_args()
    known: dict[str, dict[str, Any]] = {}
    if options.out.exists():
        known = {row["name"]: row for row in json.loads(options.out.read_text())["rows"]}
    folders = sorted(path.parent for path in options.folders.glob("*/result.json"))
    wanted = [f for f in folders if (f.name not in known or f.name in options.again) and (not options.only or f.name in options.only)]
    text = options.text.read_text(encoding="utf-8")
    original = load(options.original, quantization="16bit", use_cache=False) if wanted else None
    for start in range(0, len(wanted), TOGETHER):
        assert original is not None
        for row in measure(original, wanted[start : start + TOGETHER], text, options.context, options.windows):
            known[row["name"]] = row
            kl, ratio = row["kl"], row["perplexity_ratio"]
            print(f"{row['name']}: KL {kl['mean']:.4f} [{kl['low']:.4f}, {kl['high']:.4f}], perplexity {row['perplexity']['value']:.3f} "
                  f"({ratio['value'] - 1:+.2%}), {row['bits']:.3f} bits, {row['wall_s']:.0f} s, {row['peak_rss_mb']} MB", flush=True)
        result = {"model": options.note or options.original.name, "text": options.text.name, "context": options.context, "windows": options.windows,
                  "rows": sorted(known.values(), key=lambda row: str(row["name"]))}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
