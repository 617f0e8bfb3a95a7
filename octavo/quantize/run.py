"""quantize(): open, transform and round layer by layer, write."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..calibration import Block, Blocks, Group, Samples, Statistics, read_samples
from ..calibration.blocks import Weights
from ..calibration.extra import check_extra
from ..calibration.importance import mean_squares
from ..calibration.statistics import means, of_rows, of_squares
from ..checkpoints import Checkpoint, open_checkpoint
from ..conversion import RefusedError, convert
from ..conversion import Report as Written
from ..errors import CheckpointError, OctavoError, UsageError
from ..loading import load, open_model
from ..machine import detect, give_back_freed
from ..models import Decoder
from ..qtensor import NonFiniteError, QTensor
from ..qtensor import quantize as nearest
from ..quality.texts import calibration_text
from ..schemes import CacheSpec, Plan, Scheme, TensorSpec, write_tensor
from ..text import Text
from . import own
from .inputs import check_observer, is_static, rotation_for, scale_of, with_static_inputs
from .kv_cache import CacheScales, cache_of_plan, is_measured, remarks
from .method import BlockRounder, Correction, RemarkingRounder, Retargeting, Rounder, Transform, needs_of, options_of, round_rotated, rounder, transform
from .nearest import Nearest
from .store import QuantizedCheckpoint, Store

ERROR_ROWS = 64  # of a weight: of so many outputs, at least, the error is reported
ERROR_INPUTS = 2048  # of a weight that was rounded with its whole layer: from so many rows, at most
RECIPE = 8  # changes when the same wish gives other bytes
BF16 = TensorSpec("bf16")
LEAST_GROUP = 16  # smaller ones cost more in scales than they save
UNREAD = "the text of --data was not read"
OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Wish:
    """What is asked for.

    scheme      a precision (W4g128A16), or a plan ("W4g128; *down_proj*=W8")
    method      a rounder's name; `transforms` go before it, in this order
    options     "gptq.damping" -> "0.02"
    data        calibration text, see read_samples; None for methods that need none
    keep        globs on names: weights to leave unquantized
    include     globs on names: embedding and output layer, which otherwise stay as they are; they are always rounded to nearest
    observer    what finds the range of static inputs and caches (calibration.observers); "" is the usual one
    cache       the key-value cache, as a plan that says nothing else ("C8"), where `scheme` leaves it open (a search); "" is what `scheme` says
    """

    scheme: str
    method: str = "gptq"
    transforms: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    sequences: int = 128
    tokens: int = 512
    seed: int = 0
    keep: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    observer: str = ""
    cache: str = ""


@dataclass
class Report:
    """errors   weight -> squared error, as a part of the square, of its outputs where the method looked at its inputs (`of_outputs`; tokens count as
                calibration/tokens.py says), else of the weight itself; without those of layers that an earlier run finished
    notes     what a method had to do otherwise than asked
    written     what was written, see conversion.Report
    """

    scheme: str
    method: str
    samples: str
    errors: dict[str, float]
    written: Written
    seconds: float = 0.0
    resumed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    of_outputs: bool = False
    notes: list[str] = field(default_factory=list)


def quantize(source: str | Path, out: str | Path, wish: Wish, *, to: str = "compressed-tensors", threads: int | None = None, overwrite: bool = False,
             shard_size: int = 5_000_000_000, revision: str | None = None, allow_pickle: bool = False, cache_dir: Path | None = None,
             on_progress: OnProgress | None = None) -> Report:
    """Quantize the linears of a model's layers and write the checkpoint `out` in the format `to` (see conversion.convert; or "octavo", Octavo's own).

    `on_progress(layers done, layers, seconds since the first)` is called after each layer. A run that was interrupted leaves a hidden folder beside `out`;
    the same call goes on from the last finished layer and ends with the same bytes, as any number of threads does.
    Raises UsageError, SchemeError, CheckpointError, MissingExtraError.
    """
    check_extra()
    began = time.perf_counter()
    target = target_of(out, overwrite)
    method, transforms = methods_of(wish)
    plan = Plan.parse(wish.scheme)
    opened = open_checkpoint(source, revision=revision, allow_pickle=allow_pickle)
    for one in transforms:
        opened = one.opened(opened) if isinstance(one, Correction) else opened
    checkpoint, model, found = open_model(opened, wish.tokens)
    plan = plan.with_cache(Plan.parse(wish.cache).cache(model.layers)) if wish.cache else plan
    cache = cache_of_plan(plan, model.layers, f"--scheme {wish.cache or wish.scheme}")
    schemes = _schemes(checkpoint, found, plan, wish, cache)
    check_target(checkpoint, found, schemes, target, to, wish, overwrite, cache)
    static = [scheme.activation for scheme in schemes.values() if is_static(scheme.activation)]
    observer = check_observer(wish.observer, static)
    rotations = rotations_of(method, schemes, {name: checkpoint.tensors[found[name]].shape[-1] for name in schemes}, to)
    measured = CacheScales(cache, model.layers, wish.observer) if cache is not None and is_measured(cache) else None
    looks = bool(transforms or static or measured) or isinstance(method, BlockRounder) or needs_of(method) != "nothing"
    samples = samples_of(checkpoint, model, wish) if looks else None
    alone = needs_of(method, samples is not None) == "squares" and not (transforms or static or measured or rotations)
    importance = _importance(source, samples, threads, revision, allow_pickle) if alone and samples is not None else None
    settings = {"octavo": __version__, "recipe": RECIPE, "plan": plan.to_json(), "keep": list(wish.keep), "include": list(wish.include),
                "method": options_of(method), "transforms": [options_of(one) for one in transforms], "samples": samples.digest if samples else "",
                "source": checkpoint.content_key(cache_dir), **({"observer": observer} if static else {}),
                **({"cache_observer": measured.observer} if measured else {}),
                **({"importance": "float32" if importance is None else "8bit"} if alone and samples else {})}
    signature = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    store = Store(target, settings)
    weights = Weights(checkpoint, found)
    work = _Work(model, weights, method, transforms, schemes, store, threads or detect(None).cores, on_progress, observer, samples is not None,
                 measured, rotations)
    resumed = sum(store.has(layer) for layer in range(model.layers))
    errors = work.run(samples if importance is None else None, importance)
    outer = work.run_outer()
    result = QuantizedCheckpoint(checkpoint, store, weights, {name: s.activation for name, s in schemes.items() if s.activation.quantized},
                                 model.layers + outer, signature, None if isinstance(cache, CacheSpec) else cache)
    if to == own.TARGET:
        written = own.write_own(result, {name: name for name in weights.edits} | found, target, cache)
    else:
        try:
            written = convert(result, target, to=to, include=included(found, schemes), keep=kept(checkpoint, found, schemes), shard_size=shard_size,
                              overwrite=overwrite, threads=threads, cache_dir=cache_dir)
        except RefusedError as error:  # what an option of the method brings (fractions as zero points, an order of inputs)
            raise UsageError(error.what, where=f"--to {to}", remedy="run again with another --to, such as octavo: the layers are kept") from None
    store.remove()
    notes = [*work.notes, *_unread(wish, plan, samples is not None), *remarks(cache, to)]
    return Report(plan.short, wish.method, samples.name if samples else "", errors, written, time.perf_counter() - began, resumed, settings,
                  needs_of(method) == "gram" or isinstance(method, BlockRounder), notes)


def _importance(source: str | Path, samples: Samples, threads: int | None, revision: str | None, allow_pickle: bool) -> dict[str, np.ndarray] | None:
    """The mean square of each input of each linear, by the kernels that serve in 8 bits; None where they do not run this model."""
    try:
        loaded = load(source, quantization="8bit", threads=threads, use_cache=False, max_model_len=samples.ids.shape[1], revision=revision,
                      allow_pickle=allow_pickle)
    except OctavoError:  # the forward in float32 asks for less, and says what is wrong where it cannot go on either
        return None
    return mean_squares(loaded, samples.ids)


def target_of(out: str | Path, overwrite: bool) -> Path:
    """Where to write. Raises UsageError where something stands there that is not to be replaced."""
    target = Path(out).expanduser().absolute()
    if (target.exists() or target.is_symlink()) and not overwrite:
        raise UsageError("exists", where=str(out), remedy="name another place, or give --overwrite")
    return target


def methods_of(wish: Wish) -> tuple[Rounder, list[Transform]]:
    """The rounder and the transforms, with their options. Raises UnknownNameError, UsageError."""
    options: dict[str, dict[str, str]] = {}
    for key, value in wish.options.items():
        name, dot, option = key.partition(".")
        if not dot or name not in (wish.method, *wish.transforms):
            raise UsageError(f"{key!r} names no option of {wish.method}", where="--set", remedy=f"such as {wish.method}.OPTION=VALUE")
        options.setdefault(name, {})[option] = value
    return rounder(wish.method, options.get(wish.method)), [transform(name, options.get(name)) for name in wish.transforms]


def _unread(wish: Wish, plan: Plan, read: bool) -> list[str]:
    """A sentence where calibration text was given and nothing looks at it."""
    if wish.data is None or read:
        return []
    return [f"{UNREAD}: {wish.method} for {plan.default} looks at no inputs"]


def _schemes(checkpoint: Checkpoint, found: Mapping[str, str], plan: Plan, wish: Wish, cache: TensorSpec | CacheSpec | None) -> dict[str, Scheme]:
    """The weights to be rounded: those of the layers' linears that the plan quantizes. None at all where only the cache is quantized."""
    chosen = {}
    for name, stored in found.items():
        info = checkpoint.tensors[stored]
        part = name.startswith("model.layers.") or any(fnmatchcase(name, pattern) for pattern in wish.include)
        if not part or len(info.shape) != 2 or any(fnmatchcase(name, pattern) for pattern in wish.keep):
            continue
        scheme = plan.scheme_for(name)
        if scheme is None or not scheme.weight.quantized:
            continue
        if info.spec is not None and info.spec.quantized:
            raise UsageError(f"{stored} is quantized already ({info.stored})", where=str(checkpoint.path),
                             remedy="quantize the original model; `octavo convert --requantize` rounds a quantized one")
        scheme = with_static_inputs(scheme, f"--scheme {wish.scheme}")
        outside = not name.startswith("model.layers.") and is_static(scheme.activation)  # their inputs are not looked at
        chosen[name] = replace(scheme, activation=BF16) if outside else scheme
    if not chosen and cache is None:
        raise UsageError("nothing would be quantized", where=f"--scheme {wish.scheme}", remedy="name a precision of weights below 16 bits")
    return chosen


def included(found: Mapping[str, str], schemes: Mapping[str, Scheme]) -> list[str]:
    """For the converter: what is quantized outside the layers, where convention leaves it."""
    return [escape(found[name]) for name in schemes if not name.startswith("model.layers.")]


def kept(checkpoint: Checkpoint, found: Mapping[str, str], schemes: Mapping[str, Scheme]) -> list[str]:
    """For the converter, which would round them: the matrices that stay as they are."""
    return [escape(stored) for name, stored in found.items() if name not in schemes and len(checkpoint.tensors[stored].shape) == 2]


def rotations_of(method: Rounder, schemes: Mapping[str, Scheme], widths: Mapping[str, int], to: str) -> dict[str, int]:
    """Weight -> the block of its inputs' rotation when the model runs, for those whose scheme wants it. Raises UsageError where that cannot be."""
    found = {name: block for name, scheme in schemes.items() if (block := rotation_for(scheme, widths[name]))}
    if not found:
        return {}
    asked = f"--scheme {schemes[next(iter(found))]}"
    if to != own.TARGET:
        raise UsageError(f"{to} cannot say that inputs are rotated when the model runs", where=asked, remedy="write --to octavo, or leave the h out")
    if isinstance(method, BlockRounder):
        raise UsageError(f"{type(method).__name__.lower()} learns codes of weights as they are, not of rotated ones", where=asked,
                         remedy="choose --method gptq, or leave the h out")
    return found


def check_target(checkpoint: Checkpoint, found: Mapping[str, str], schemes: Mapping[str, Scheme], target: Path, to: str, wish: Wish, overwrite: bool,
                 cache: TensorSpec | CacheSpec | None = None) -> None:
    """Asks the target, before hours of work, whether it could hold the result."""
    if to == own.TARGET:
        return
    if isinstance(cache, CacheSpec):
        raise UsageError(f"{to} has one key-value cache for keys, values and all layers, not {cache}", where=f"--scheme {wish.cache or wish.scheme}",
                         remedy="write --to octavo; or name one for all, such as C8")
    specs = {found[name]: scheme.weight for name, scheme in schemes.items()}
    activations = {found[name]: scheme.activation for name, scheme in schemes.items() if scheme.activation.quantized}
    try:
        convert(Nearest(checkpoint, specs, activations, cache), target, to=to, include=included(found, schemes), keep=kept(checkpoint, found, schemes),
                overwrite=overwrite, dry_run=True)
    except RefusedError as error:
        widths = [checkpoint.tensors[name].shape[1] for name, spec in specs.items() if spec.granularity == "group"]
        fitting = math.gcd(*widths) & -math.gcd(*widths) if widths else 0  # the largest power of two that divides them all
        groups = f"groups of {min(fitting, 128)} fit all of them (such as {_narrower(specs, min(fitting, 128))}A16); or " if fitting >= LEAST_GROUP else ""
        raise UsageError(error.what, where=f"--scheme {wish.scheme} --to {to}",
                         remedy=f"{groups}give these weights a precision of their own ('{wish.scheme}; *down_proj*=W8A16'), leave them as they are with "
                                "--keep, or choose another format with --to") from None


def _narrower(specs: Mapping[str, TensorSpec], size: int) -> str:
    """The precision that most of these weights were wished in, with groups of this size."""
    grouped = Counter(spec for spec in specs.values() if spec.granularity == "group").most_common(1)[0][0]
    return f"W{write_tensor(replace(grouped, size=size), 'weight')}"


def samples_of(checkpoint: Checkpoint, model: Decoder, wish: Wish, more: int = 0) -> Samples:
    """The calibration text, in `more` sequences than are wished for. Raises UsageError."""
    if wish.data is None:
        raise UsageError(f"{wish.scheme} by {' after '.join((wish.method, *wish.transforms[::-1]))} needs calibration text", where="--data",
                         remedy="name a .txt or .jsonl file of text like what the model will meet, or wikitext2; --method rtn with dynamic scales needs none")

    def text() -> Text:
        files = checkpoint.tokenizer_files()
        return Text(files["tokenizer"], files["config"], files["generation"])

    known = calibration_text(wish.data)
    samples = read_samples(wish.data if known is None else known.name, text, model.vocab_size, sequences=wish.sequences + more, tokens=wish.tokens,
                           seed=wish.seed, texts=None if known is None else known.documents)
    if samples.ids.shape[1] > model.max_model_len:
        raise UsageError(f"sequences of {samples.ids.shape[1]} tokens are too long", where=str(wish.data),
                         remedy=f"--tokens bounds them; this model takes {model.natural_len}")
    return samples


class _Work:
    """Layer after layer: transform, round, keep."""

    def __init__(self, model: Decoder, weights: Weights, method: Rounder, transforms: Sequence[Transform], schemes: Mapping[str, Scheme], store: Store,
                 threads: int, on_progress: OnProgress | None, observer: str, text: bool, cache: CacheScales | None = None,
                 rotations: Mapping[str, int] | None = None) -> None:
        self.model, self.weights, self.method, self.transforms, self.store, self.threads = model, weights, method, transforms, store, threads
        self.schemes, self.needs = schemes, needs_of(method, text)
        self.notes: list[str] = []
        self.specs = {name: scheme.weight for name, scheme in schemes.items()}
        self.on_progress, self.observer, self.cache = on_progress, observer, cache
        self.compares = isinstance(method, BlockRounder) or any(isinstance(one, Retargeting) for one in transforms)
        self.errors: dict[str, float] = {}
        self.rotations = rotations or {}

    def run(self, samples: Samples | None, importance: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
        """importance: of the inputs of each weight, where nothing else need be known of them."""
        self._began = time.perf_counter()
        if samples is None:
            for layer in range(self.model.layers):
                if not self.store.has(layer):
                    specs = self._specs(layer)
                    rounded: dict[str, QTensor] = {}
                    for name in specs:
                        weight, known = {name: self.weights.get(name)}, None if importance is None else of_squares(importance[name])
                        rounded.update(self._round(weight, specs, known))
                        self._values(weight, rounded, None)
                    self.store.put(layer, rounded, {})
                self._tell(layer)
            return self.errors
        for one in self.transforms:
            one.prepare(self.model, self.weights)
        with Blocks(self.model, self.weights, samples.ids, self.threads, original=self.compares) as blocks:
            for block in blocks:
                if self.store.has(block.layer):
                    self._again(block)
                else:
                    self._layer(block, self._specs(block.layer))
                self._tell(block.layer)
        return self.errors

    def run_outer(self) -> int:
        """Embedding and output layer, where they take part: 1 more file in the store, or 0."""
        outer = {name: spec for name, spec in self.specs.items() if not name.startswith("model.layers.")}
        if outer and not self.store.has(self.model.layers):
            rounded = {name: nearest(self.weights.get(name), spec, rotation=self.rotations.get(name, 0)) for name, spec in outer.items()}
            self.store.put(self.model.layers, rounded, {})
        return len(outer) and 1

    def _tell(self, layer: int) -> None:
        if self.on_progress is not None:
            self.on_progress(layer + 1, self.model.layers, time.perf_counter() - self._began)

    def _specs(self, layer: int) -> dict[str, TensorSpec]:
        return {name: spec for name, spec in self.specs.items() if name.startswith(f"model.layers.{layer}.")}

    def _layer(self, block: Block, specs: Mapping[str, TensorSpec]) -> None:
        results: dict[str, QTensor] = {}
        inputs: dict[str, np.float32] = {}
        self._transform(block, specs)
        block.changes = [partial(one.retarget, block, names=specs) for one in self.transforms if isinstance(one, Retargeting)]
        if isinstance(self.method, BlockRounder):
            results = self.method.round_block(block, specs)
            block.changes = []
            if isinstance(self.method, RemarkingRounder):
                self.notes += [remark for remark in self.method.remarks if remark not in self.notes]
                self.method.remarks.clear()

        def visit(group: Group) -> list[np.ndarray] | None:
            mine = [matrix.name for matrix in group.weights if matrix.name in specs]
            if not mine:
                return None
            statistics = self._statistics(group, mine, rounded=bool(results.keys() & set(mine)))
            inputs.update(self._inputs(group, mine))
            ours = {matrix.name: matrix.values for matrix in group.weights if matrix.name in specs}
            results.update(self._round({name: weight for name, weight in ours.items() if name not in results}, specs, statistics))
            values = self._values(ours, results, statistics)
            for one in self.transforms:
                if isinstance(one, Correction):
                    integers = {name: scale for name, scale in inputs.items() if self.schemes[name].activation.format == "int8"}
                    one.correct(block, group, values, integers)
            return [values.get(matrix.name, matrix.values) for matrix in group.weights]

        block.run(visit, None if self.cache is None else self.cache.watch)
        block.finish()
        changed = {name: values for name, values in block.tensors.items() if name not in specs and not np.array_equal(values, self.weights.stored(name))}
        self.store.put(block.layer, results, changed, inputs, None if self.cache is None else self.cache.taken())
        give_back_freed()  # rows of all sequences, in pieces between what lives on

    def _statistics(self, group: Group, names: Sequence[str], rounded: bool) -> Statistics | None:
        """Of the inputs of these weights. `rounded`: by a BlockRounder, so only their errors are left to be told, for which some rows do."""
        if rounded:
            return means(of_rows(group.inputs(ERROR_INPUTS), True, False, group.sampled_counts(ERROR_INPUTS)))
        if self.needs == "nothing":
            return None
        gram = self.needs == "gram" or any(name in self.rotations for name in names)
        return group.statistics(gram=gram, moments=False, counted=self.needs == "gram")

    def _transform(self, block: Block, specs: Mapping[str, TensorSpec]) -> None:
        for one in self.transforms:
            one.apply(block, {name: self.schemes[name] for name in specs}, self.needs)
        block.refer()

    def _inputs(self, group: Group, names: Sequence[str]) -> dict[str, np.float32]:
        """The static scales that these weights want for their inputs."""
        specs = {name: self.schemes[name].activation for name in names if is_static(self.schemes[name].activation)}
        known = {spec: scale_of(group, spec, self.observer) for spec in dict.fromkeys(specs.values())}
        return {name: known[spec] for name, spec in specs.items()}

    def _round(self, weights: Mapping[str, np.ndarray], specs: Mapping[str, TensorSpec], statistics: Statistics | None) -> dict[str, QTensor]:
        """Weights that read the same inputs."""
        found: dict[str, QTensor] = {}
        try:
            for block in dict.fromkeys(self.rotations.get(name, 0) for name in weights):
                mine = {name: values for name, values in weights.items() if self.rotations.get(name, 0) == block}
                tensors = round_rotated(self.method, list(mine.values()), [specs[name] for name in mine], statistics, self.threads, block)
                found.update(zip(mine, tensors, strict=True))
        except NonFiniteError as error:
            raise CheckpointError(f"a tensor of {', '.join(weights)} {error.what}", where=str(self.weights.checkpoint.path), remedy=error.remedy) from None
        if isinstance(self.method, RemarkingRounder):
            self.notes += [f"{', '.join(weights)}: {remark}" for remark in self.method.remarks]
            self.method.remarks.clear()
        return found

    def _values(self, weights: Mapping[str, np.ndarray], tensors: Mapping[str, QTensor], statistics: Statistics | None) -> dict[str, np.ndarray]:
        """The numbers that each weight has become; into `errors`, from some of the outputs, what that costs."""
        def one(name: str) -> tuple[np.ndarray, float]:
            found = tensors[name].dequantize()
            step = max(1, len(found) // ERROR_ROWS)
            values, difference = weights[name][::step], weights[name][::step] - found[::step]
            if statistics is not None and statistics.gram is not None:
                return found, statistics.output_error(difference) / max(statistics.output_error(values), 1e-30)
            return found, float(np.square(difference, dtype=np.float64).sum() / max(float(np.square(values, dtype=np.float64).sum()), 1e-30))

        with ThreadPoolExecutor(self.threads) as pool:
            done = dict(zip(weights, pool.map(one, weights), strict=True))
        self.errors.update({name: error for name, (_, error) in done.items()})
        return {name: values for name, (values, _) in done.items()}

    def _again(self, block: Block) -> None:
        """A layer that an earlier run finished: only its outputs are needed, and those of the unrounded model where that goes along."""
        if self.compares:
            self._transform(block, self._specs(block.layer))
        tensors, vectors = self.store.get(block.layer)
        block.tensors.update({name: tensor.dequantize() for name, tensor in tensors.items()})
        block.tensors.update(vectors)
        block.run()
        block.finish()
