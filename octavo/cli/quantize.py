"""`octavo quantize MODEL OUT --scheme W4g128A16 --method gptq --data FILE`: a model into fewer bits, calibrated."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ._command import Command

if TYPE_CHECKING:
    from ..quality.receipt import Receipt
    from ..quantize import Report


SCHEME = "W4g128A16"
LOG_SECONDS = 20.0  # between two lines of progress in a log
UNROUNDED = 16  # bits of inputs
CANDIDATES = "W2g64,W3g64,W3g32,W4g64,W4g32,W5g64,W6g64,W8g64"


@dataclass
class Options:
    model: str
    """A model folder, a .gguf file, or a hub id (owner/name), unquantized."""

    out: Path
    """The folder to write; for gguf, the file."""

    _: KW_ONLY

    scheme: str | None = None
    """The precision, as `octavo explain` reads it (default W4g128A16); `NAME; PATTERN=NAME` for more than one; or a plan: mixquant, or a .json file (a
    search's, or FastDeploy's MixQuant). Its C part, such as C8 or Cfp8ts, goes into the checkpoint. Beside a search: the cache alone (C8)."""

    target_bits: float | None = None
    """Search a precision for each weight, so that they have this many bits on average, scales counted."""

    target_size: str | None = None
    """The same, so that all tensors together take this much: 80MB, 1.5GB."""

    max_kl: float | None = None
    """The same, as small as can be with at most this KL (nats per token) on text that was not used for calibration, nor on the receipt's."""

    minimize: str = "size"
    """What --max-kl makes small: size, or work: bits of weights times bits of inputs, so that A8 counts half of A16 (with --candidates that have both)."""

    candidates: str = CANDIDATES
    """The precisions that a search may give, such as W4g64,W8A8; embedding and output layer take those of 4 bits and more. C8, K8V4, C4: of the cache."""

    context: int | None = None
    """In a search with candidates of the key-value cache: tokens whose cache counts as size (default 4096, or what the model takes)."""

    together: bool = False
    """In a search: one precision for q, k and v, and for gate and up, which some engines fuse."""

    method: str = "gptq"
    """How weights are rounded; `octavo list methods` says which there are."""

    transform: list[str] = field(default_factory=list)
    """What is done to the weights before, such as awq or smoothquant (may be repeated; in this order)."""

    set: list[str] = field(default_factory=list)
    """An option of a method, such as gptq.damping=0.02 (may be repeated)."""

    data: Path | None = None
    """Calibration text: .txt, .jsonl, .npy token ids, or wikitext2 (its training part, from the hub). Never the text that quality is measured on."""

    sequences: int = 128
    """Sequences of calibration text."""

    tokens: int = 512
    """Tokens of each."""

    seed: int = 0
    """Of the choice of texts."""

    observer: str = ""
    """What finds the range of static inputs (W8A8ts) and caches (Cfp8ts): min-max, percentile, mse or entropy; default mse, for FP8 and caches min-max."""

    to: str = "compressed-tensors"
    """The format that is written; see `octavo convert --help`. octavo: Octavo's own, the only one for --method trellis."""

    keep: list[str] = field(default_factory=list)
    """Leave weights unquantized whose name matches (a glob; may be repeated)."""

    include: list[str] = field(default_factory=list)
    """Quantize embedding (`*embed_tokens*`) or output layer (`*lm_head*`), too, rounded to nearest (a glob; may be repeated). A search includes both."""

    threads: int | None = None
    """Default: as many as this process may use cores. The result does not depend on it."""

    overwrite: bool = False
    """Replace what stands at OUT."""

    allow_pickle: bool = False
    """Read pickled weights (.bin, .pt), by torch's weights_only loader, where there are no others."""

    revision: str | None = None
    """Branch, tag or commit of a hub model."""

    receipt: bool = True
    """Write octavo-receipt.json: what the model has lost, measured on a few hundred tokens."""

    receipt_text: str | None = None
    """Measure on this text instead of one of Octavo's own; as `octavo evaluate --text`."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> None:
    """Quantize the linears of a model's layers, calibrated on text, and write a checkpoint that other engines load, too.

    Run again after an interruption, it goes on after the last finished layer.
    """
    settings = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"cannot read {text!r}", where="--set", remedy="write METHOD.OPTION=VALUE")
        settings[key.strip()] = value.strip()

    if options.receipt and options.data is not None and options.receipt_text is not None and _same(options.data, options.receipt_text):
        raise UsageError("is the calibration text: what is lost would look too small", where="--receipt-text", remedy="name another text, or leave it out")
    from ..quantize import Wish, cache_beside_search, plan_text, quantize

    searching = any(goal is not None for goal in (options.target_bits, options.target_size, options.max_kl))
    cache = cache_beside_search(options.scheme) if searching and options.scheme is not None else ""
    scheme = SCHEME if searching or options.scheme is None else options.scheme
    wish = Wish(plan_text(scheme), options.method, tuple(options.transform), settings, options.data, options.sequences, options.tokens, options.seed,
                tuple(options.keep), tuple(options.include), options.observer, cache)
    rest: dict[str, Any] = {"to": options.to, "threads": options.threads, "overwrite": options.overwrite, "revision": options.revision,
                            "allow_pickle": options.allow_pickle, "on_progress": _progress("layer")}
    found: dict[str, Any] = {}
    if searching:
        from ..quality.texts import read_text
        from ..quantize.mixed import quantize_mixed
        from ..quantize.search import Goal, parse_size

        size = None if options.target_size is None else parse_size(options.target_size)
        goal = Goal(options.target_bits, size, options.max_kl, options.minimize)
        receipt_text = read_text(options.receipt_text or "receipt") if options.receipt else None
        names = [name.strip() for name in options.candidates.split(",") if name.strip()]
        outcome = quantize_mixed(options.model, options.out, wish, goal, names, together=options.together, context=options.context,
                                 on_measured=_progress("sensitivities: step"), receipt_text=receipt_text, **rest)
        report, found, receipt = outcome.report, outcome.to_json(), outcome.receipt
    else:
        if (options.candidates, options.together, options.minimize, options.context) != (CANDIDATES, False, "size", None):
            raise UsageError("these are for a search", where="--candidates, --together, --minimize, --context",
                             remedy="give a goal: --target-bits, --target-size or --max-kl; or name one precision with --scheme")
        report = quantize(options.model, options.out, wish, **rest)
        receipt = _receipt(options, report) if options.receipt else None
    if options.json:
        print(json.dumps({"scheme": report.scheme, "method": report.method, "samples": report.samples, "errors": report.errors, "notes": report.notes,
                          "seconds": report.seconds, "resumed": report.resumed, "settings": report.settings, "written": report.written.to_json(),
                          "receipt": None if receipt is None else receipt.to_json(), **({"search": found} if found else {})}, indent=2))
    else:
        _show(options, report)
        if found:
            inputs = f", inputs of {found['input_bits']:.1f}" if found["input_bits"] < UNROUNDED else ""
            cache = f" (cache {found['cache']['precision']}, {found['cache']['context']} tokens of it counted)" if "cache" in found else ""
            print(f"{found['bits']:.3f} bits per weight{inputs}, {found['bytes'] / 1e6:.2f} MB{cache}, "
                  f"KL {found['measured_kl']:.4g} nats per token on held-out text "
                  f"({found['predicted_kl']:.4g} were predicted); plan: {found['plan_file']}, front: {found['front_file']}")
        if receipt is not None:
            print(f"receipt: {receipt.line}")


def _same(data: Path, text: str) -> bool:
    """Whether both names stand for one file."""
    one, other = data.expanduser(), Path(text).expanduser()
    return one.exists() and other.exists() and one.samefile(other)


def _receipt(options: Options, report: Report) -> Receipt:
    from ..quality.receipt_of import receipt_of
    from ..quality.texts import read_text

    calibration = {"name": report.samples, "sha256": report.settings.get("samples"), "sequences": options.sequences, "tokens": options.tokens,
                   "seed": options.seed}
    return receipt_of(options.model, options.out, settings={"verb": "quantize", **report.settings}, calibration=calibration if report.samples else None,
                      output_errors=report.errors if report.of_outputs else None, text=read_text(options.receipt_text or "receipt"), threads=options.threads,
                      revision=options.revision, allow_pickle=options.allow_pickle)


def _progress(what: str) -> Callable[[int, int, float], None]:
    """Shows how far it is and how long it will take: on a terminal in one line that changes, elsewhere (a log) in a line now and then."""
    told = 0.0

    def show(done: int, total: int, seconds: float) -> None:
        nonlocal told
        text = f"{what} {done} of {total}, {seconds / done * (total - done):.0f} s left"
        if sys.stderr.isatty():
            print(f"\r{text} ", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif seconds - told >= LOG_SECONDS:
            told = seconds
            print(text, file=sys.stderr, flush=True)

    return show


def _show(options: Options, report: Report) -> None:
    worst = sorted(report.errors.items(), key=lambda item: -item[1])[:3]
    print(f"{report.scheme} by {report.method}" + (f", calibrated on {report.samples}" if report.samples else ", without calibration"))
    if worst:
        print(f"largest errors of {'outputs' if report.of_outputs else 'weights'}: " + ", ".join(f"{name} {100 * error:.2f}%" for name, error in worst))
    for note in report.notes:
        print(f"note: {note}")
    if report.resumed:
        print(f"{report.resumed} layers were there from an interrupted run")
    written = report.written
    print(f"wrote {options.out} in {report.seconds:.1f} s: {written.target}, {written.bytes_before / 1e6:.1f} MB -> {written.bytes_after / 1e6:.1f} MB")


COMMAND = Command("quantize", Options, run)
