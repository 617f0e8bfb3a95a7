"""Every real checkpoint under a folder, read by Octavo and held against its golden.npz; the table of docs/checkpoints.md.

    python tests/real_checkpoints/compare.py ROOT [--only NAME ...] [--table docs/checkpoints.md]

Three questions for each:

    exact     are the weights, read into float32, the maker's own dequantized numbers? Compared bit by bit on the weights that golden.npz holds; where
              the two differ in the order of two float32 multiplications, in units of the last place
    32bit     load(quantization="32bit"): the largest difference of a logit over the prompt, relative to the largest logit, and the same greedy text?
    stored    load() as users do, in the checkpoint's own precision on native kernels: what runs, the same difference, how many greedy tokens are the same

The key-value cache is float32 in both, as in the golden model. A difference above 1e-3 or another greedy text with "32bit" is a failure, and so is one
"stored" unless activations are rounded there, or a format that no kernel reads is emulated in bfloat16 (as the load report says): that is another arithmetic
than the golden one, and is told, not judged. The exit status says whether there was a failure. Results are kept in ROOT/<name>/octavo.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from octavo.cache import PAGE, Step
from octavo.checkpoints import open_checkpoint
from octavo.errors import OctavoError
from octavo.loading import load
from octavo.loading._model import LoadedModel

CLOSE = 1e-3
BEGIN, END = "<!-- table of tests/real_checkpoints/compare.py -->", "<!-- end of the table -->"


@dataclass
class Row:
    """One checkpoint. `ulps`: largest difference of a weight in units of its last place (0: bit-equal); `error`: why nothing else is known."""

    name: str
    maker: str
    megabytes: float = 0.0
    ulps: int = -1
    difference: float = -1.0
    same_text: bool = False
    runs: str = ""
    stored_difference: float = -1.0
    stored_tokens: int = -1
    seconds: float = 0.0
    error: str = ""

    @property
    def good(self) -> bool:
        return not self.error and max(self.difference, 0 if self.rounds else self.stored_difference) <= CLOSE and self.same_text and self.ulps <= 1

    @property
    def rounds(self) -> bool:
        return ("A16" not in self.runs and "activations stay" not in self.runs) or "emulated" in self.runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.root.glob("*/golden.npz"))
    if not folders:
        print(f"no checkpoint with a golden.npz under {options.root}: run `make checkpoints`", file=sys.stderr)
        return 2
    for folder in folders:
        if not options.only or any(part in folder.name for part in options.only):
            row = compare(folder)
            (folder / "octavo.json").write_text(json.dumps(asdict(row), indent=1))
            print(("ok   " if row.good else "FAIL ") + as_text(row), flush=True)
    rows = [Row(**json.loads((folder / "octavo.json").read_text())) for folder in folders if (folder / "octavo.json").exists()]
    if options.table:
        write_table(rows, options.table)
    return 0 if all(row.good for row in rows) else 1


def compare(folder: Path) -> Row:
    with np.load(folder / "golden.npz") as stored:
        golden = {name: stored[name] for name in stored.files}
    ggufs = sorted(folder.glob("*.gguf"))
    path = ggufs[0] if ggufs else folder
    files = ggufs or sorted(folder.glob("*.safetensors"))
    row = Row(folder.name, str(golden["maker"]), megabytes=sum(file.stat().st_size for file in files) / 1e6)
    began = time.perf_counter()
    try:
        row.ulps = worst_ulps(path, golden)
        row.difference, same, _ = against(path, golden, "32bit")
        row.same_text = same == len(golden["greedy"])
        row.stored_difference, row.stored_tokens, row.runs = against(path, golden, None)
    except OctavoError as error:
        row.error = str(error).replace(str(folder), folder.name).replace("\n", " ")
    row.seconds = time.perf_counter() - began
    return row


def worst_ulps(path: Path, golden: dict[str, np.ndarray]) -> int:
    checkpoint = open_checkpoint(path)
    worst = 0
    for name, wanted in golden.items():
        if name.startswith("weight:"):
            ours = np.asarray(checkpoint.read(name.removeprefix("weight:"), slice(0, len(wanted))).dequantize(), np.float32)
            worst = max(worst, int(np.abs(ordered(ours) - ordered(wanted)).max()))
    return worst


def ordered(values: np.ndarray) -> np.ndarray:
    """float32 as integers in the same order, neighbours one apart; both zeros are 0."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def against(path: Path, golden: dict[str, np.ndarray], quantization: str | None) -> tuple[float, int, str]:
    """(largest difference of a logit relative to the largest one, greedy tokens equal from the first on, what runs)."""
    with tempfile.TemporaryDirectory() as cache:
        loaded = load(path, quantization=quantization, kv_cache="fp32", use_cache=False, cache_dir=cache)
    prompt, wanted, greedy = golden["prompt"].astype(np.int32), golden["logits"], golden["greedy"]
    driver = Run(loaded, len(prompt) + len(greedy))
    logits = driver.feed(prompt)
    difference = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    same = 0
    while same < len(greedy) and int(logits[-1].argmax()) == int(greedy[same]):
        logits = driver.feed(greedy[same : same + 1].astype(np.int32))
        same += 1
    said = [note.split(":")[0] for note in loaded.report.notes if "is emulated" in note or "activations stay" in note]
    return difference, same, shortened(loaded.report.scheme) + "".join(f" ({note})" for note in said)


def shortened(scheme: str) -> str:
    """A plan that names each layer, as how many matrices have what: "W4g32A16C16, 30 x W3g16A16C16, embedding W8g32A16C16"."""
    rest, *exceptions = scheme.split("; ")
    counts: dict[str, int] = {}
    for part in exceptions:
        name, _, spec = part.partition("=")
        key = f"embedding {spec}" if "embed_tokens" in name else spec
        counts[key] = counts.get(key, 0) + 1
    return ", ".join([rest, *(spec if spec.startswith("embedding") else f"{count} x {spec}" for spec, count in counts.items())])


class Run:
    """One sequence fed to a model chunk by chunk."""

    def __init__(self, loaded: LoadedModel, length: int) -> None:
        pages = -(-length // PAGE)
        self.loaded, self.pool, self.done = loaded, loaded.new_pool(pages), 0
        self.table = np.arange(pages, dtype=np.int32)[None]

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        """The logits after each of these tokens, [n, vocabulary]."""
        at = np.arange(self.done, self.done + len(tokens), dtype=np.int32)
        self.done += len(tokens)
        return self.loaded.forward(Step(
            tokens=tokens, positions=at, slots=self.table[0, at // PAGE] * PAGE + at % PAGE, starts=np.array([0, len(tokens)], np.int32),
            lengths=np.array([self.done], np.int32), tables=self.table, select=np.arange(len(tokens), dtype=np.int32)), self.pool).copy()


def as_text(row: Row) -> str:
    if row.error:
        return f"{row.name}: {row.error}"
    return (f"{row.name}: weights {row.ulps} ulp, 32bit {row.difference:.1e} {'same text' if row.same_text else 'OTHER TEXT'}; "
            f"stored {row.runs} {row.stored_difference:.1e}, {row.stored_tokens} tokens; {row.seconds:.0f} s")


def write_table(rows: list[Row], page: Path) -> None:
    """Between the two marks of the page."""
    lines = ["| checkpoint | made by | MB | weights | logits, 32bit | greedy text | as stored, runs | logits | greedy tokens |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row.error:
            lines.append(f"| `{row.name}` | {row.maker} | {row.megabytes:.0f} | not read: {row.error} | | | | | |")
            continue
        exact = "bit-equal" if row.ulps == 0 else f"{row.ulps} ulp"
        lines.append(f"| `{row.name}` | {row.maker} | {row.megabytes:.0f} | {exact} | {row.difference:.1e} | {'same' if row.same_text else 'other'} | "
                     f"{row.runs} | {row.stored_difference:.1e} | {row.stored_tokens} |")
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
