"""The questions of each stage of tuning a model: threads, kernels, settings of the engine, and the policy as a whole."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence

from ..kernels.native import NativeOps
from ..kernels.op import Program
from ..loading import LoadedModel, apply_kernels, choosable, native_of
from ..policy import KernelChoice, Policy
from ..schemes import parse_cache
from .kernels import KernelQuestion, ModelKernels, Site
from .options import TuneOptions
from .question import Question
from .whole import EngineWork, Load, Steps, Work, WorkQuestion, decoding, engine_options, geometric, prompt

SHORT, LONG = 32, 64     # tokens of context in decoding steps: many users, few users
FEW_USERS = 32
LEAST_SECONDS = 0.02     # of one measurement of a step
PROMPTS = 512            # rows from which on a bucket is about prompts
PATIENCE = 1.05          # what makes all users wait longer for their next token must gain more than this
WHOLE_RUNS = 3 * 3 * 12  # of the confirmation end to end: loads, arms, rounds
DEFAULT, POLICY = "default", "policy"


class Itself:
    """A question with the default as its only candidate: what the search says where there is nothing to find."""

    def __init__(self, question: Question) -> None:
        self.question, self.key, self.what, self.rows, self.default = question, f"itself: {question.key}", question.what, question.rows, question.default
        self.candidates = ("itself",)

    def check(self, candidate: str) -> str | None:
        return None

    def seconds(self, candidate: str) -> float:
        return self.question.seconds(self.default)

    def close(self) -> None:
        self.question.close()


def thread_question(loaded: LoadedModel) -> WorkQuestion:
    """Fewer threads than all: one, two, four ... For three kinds of steps, each counting by its ratio."""
    ops, program = native_of(loaded)
    counts = [count for i in range(10) if (count := 1 << i) < ops.threads]
    programs: dict[str, Program] = {str(ops.threads): program}
    steps = Steps(loaded)
    works = [[decoding(1, LONG)] * 2, [decoding(16, SHORT)], prompt(min(128, loaded.max_model_len), 128)]

    def work(name: str) -> Work:
        def run() -> float:
            if name not in programs:
                other = copy.copy(loaded)
                other.run_on(NativeOps(int(name), ops.isa))
                programs[name] = other.program
            return geometric([steps.seconds(programs[name], one) for one in works])
        return run

    names = [str(ops.threads), *(str(count) for count in reversed(counts))]
    return WorkQuestion(f"threads, {ops.threads} by default", "threads", "", names[0], {name: work(name) for name in names}, on_close=steps.release)


def kernel_questions(backend: ModelKernels, sites: Sequence[Site], selected: set[Site], options: TuneOptions) -> list[KernelQuestion]:
    """One for each kind of linears and bucket of rows that serving reaches and that has something to choose from, the most important first."""
    buckets, first = list(backend.buckets), list(backend.importance)
    found = []
    for bucket in sorted(buckets, key=lambda b: first.index(b) if b in first else len(first)):
        least = buckets[buckets.index(bucket) - 1] + 1 if bucket != buckets[0] else 1
        for site in sites:
            if least <= (options.max_batch if site in selected else max(options.max_batch, options.max_batch_tokens)):
                default, *others = backend.kernels(site, bucket)
                if others or options.against_itself:
                    found.append(KernelQuestion(backend, site, bucket, least, default, tuple(others)))
    return found


def by_bytes(kernels: ModelKernels) -> list[Site]:
    return sorted(kernels.bytes, key=lambda site: -kernels.bytes[site])


def with_kernels(loaded: LoadedModel, choices: Sequence[KernelChoice]) -> LoadedModel:
    """The same model with a program of its own, on the same threads."""
    other = copy.copy(loaded)
    other.run_on(loaded.backend)
    apply_kernels(choosable(other), choices)
    return other


def bucket_questions(loaded: LoadedModel, choices: Sequence[KernelChoice]) -> Iterator[tuple[int, WorkQuestion]]:
    """A step of the whole model for each bucket whose kernels changed: default kernels against those chosen."""
    steps, tuned = Steps(loaded), with_kernels(loaded, choices)
    last = choosable(loaded).buckets[-1]
    for bucket in sorted({choice.rows for choice in choices}):
        if bucket >= min(PROMPTS, last):
            tokens = min(bucket, loaded.max_model_len)
            one, what = prompt(tokens, tokens), f"a step of {tokens} prompt tokens"
        else:
            one, what = [decoding(bucket, SHORT if bucket > FEW_USERS else LONG)], f"a step of {bucket} user{'s' if bucket > 1 else ''}"
        repeat = max(1, min(8, int(LEAST_SECONDS / _quick(steps, loaded, one))))

        def work(program: Program, one: list = one, repeat: int = repeat) -> Work:  # type: ignore[type-arg]
            return lambda: steps.seconds(program, one, repeat)

        mine = [choice for choice in choices if choice.rows == bucket]
        yield bucket, WorkQuestion(f"{what} with {_digest(mine)}", what, str(bucket), DEFAULT, {DEFAULT: work(loaded.program), POLICY: work(tuned.program)})


def setting_questions(loaded: LoadedModel, options: TuneOptions) -> list[WorkQuestion]:
    """Rows of a step, sequences computed together, format of the cache. `loaded` runs the kernels chosen before."""
    steps = Steps(loaded)
    questions = [_chunk_question(loaded, steps, options), _batch_question(loaded, steps, options)]
    usual = loaded.cache_spec.format
    formats = [name for name in options.allow_kv if name != usual]
    if formats:
        context = min(512, loaded.max_model_len)

        def work(name: str) -> Work:
            spec = loaded.cache_spec if name == usual else parse_cache(name)
            return lambda: steps.seconds(loaded.program, [decoding(8, context)], 2, spec)

        questions.append(WorkQuestion(f"cache: {usual}, {formats}", "key-value cache", "8", usual, {name: work(name) for name in [usual, *formats]}))
    return questions


def _chunk_question(loaded: LoadedModel, steps: Steps, options: TuneOptions) -> WorkQuestion:
    usual = min(options.max_batch_tokens, loaded.max_model_len)
    row = _quick(steps, loaded, prompt(usual, usual)) / usual
    sizes = [size for size in (usual // 4, usual // 2, usual, 2 * usual, 4 * usual) if size == usual or 32 <= size <= loaded.max_model_len]
    refusals = {str(size): too_long for size in sizes if (too_long := _too_long(size, usual, row * size, options))}
    longest = max(size for size in sizes if str(size) not in refusals)

    def work(size: int) -> Work:
        factor = PATIENCE if size > usual else 1.0
        return lambda: factor * steps.seconds(loaded.program, prompt(longest, size))

    return WorkQuestion(f"chunk: {sizes} of {longest}", "prompt tokens in a step", "", str(usual), {str(size): work(size) for size in sizes}, refusals)


def _batch_question(loaded: LoadedModel, steps: Steps, options: TuneOptions) -> WorkQuestion:
    usual = options.max_batch
    row = _quick(steps, loaded, [decoding(usual, SHORT)]) / usual
    sizes = [size for size in (usual // 4, usual // 2, usual, 2 * usual) if size >= 1]
    refusals = {str(size): too_long for size in sizes if (too_long := _too_long(size, usual, row * size, options))}

    def work(size: int) -> Work:
        factor = PATIENCE if size > usual else 1.0
        return lambda: factor * steps.seconds(loaded.program, [decoding(size, SHORT)]) / size

    return WorkQuestion(f"batch: {sizes}", "users in a step", "", str(usual), {str(size): work(size) for size in sizes}, refusals)


def _too_long(size: int, usual: int, seconds: float, options: TuneOptions) -> str | None:
    if size > usual and seconds > options.longest_step:
        return f"makes others wait {seconds:.2f} s for a token, more than {options.longest_step:g} s"
    return None


def whole_questions(loaded: LoadedModel, tuned: LoadedModel, policy: Policy, options: TuneOptions, left: float) -> list[WorkQuestion]:
    """The engine from request to last token under the defaults and under the policy: one user, sixteen users, a long prompt. Answers and prompt are
    as long as `left` seconds allow."""
    steps, each = Steps(loaded), max(0.02, min(0.4, left / WHOLE_RUNS))
    rows = min(128, loaded.max_model_len)
    long = max(options.max_batch_tokens, policy.max_batch_tokens or 0)
    tokens = max(64, min(long, int(each / _quick(steps, loaded, prompt(rows, rows)) * rows)))
    loads = [Load("decode, 1 user", 1, 8, max(4, min(32, int(each / _quick(steps, loaded, [decoding(1, SHORT)]))))),
             Load("decode, 16 users", 16, 8, max(4, min(16, int(each / _quick(steps, loaded, [decoding(16, SHORT)]))))),
             Load("prompt", 1, min(tokens if policy.max_batch_tokens is None else long, loaded.max_model_len // 2), 1)]
    if policy.max_batch is not None:
        users = max(options.max_batch, policy.max_batch)
        loads.append(Load(f"decode, {users} users", users, 8, 4))
    questions = []
    for load in loads:
        usual = engine_options(load, max_batch=options.max_batch, max_batch_tokens=options.max_batch_tokens)
        chosen = engine_options(load, max_batch=policy.max_batch or options.max_batch, max_batch_tokens=policy.max_batch_tokens or options.max_batch_tokens)
        works: dict[str, Work] = {DEFAULT: EngineWork(loaded, usual, load), POLICY: EngineWork(tuned, chosen, load)}
        what = f"{load.what} of {load.prompt} tokens" if load.what == "prompt" else load.what
        questions.append(WorkQuestion(f"{what} with {policy.settings} and {_digest(policy.kernels)}", what, "", DEFAULT, works))
    return questions


def _quick(steps: Steps, loaded: LoadedModel, one: Sequence) -> float:  # type: ignore[type-arg]
    """Seconds of some steps, roughly: the better of two."""
    return min(steps.seconds(loaded.program, one) for _ in range(2))


def _digest(choices: Sequence[KernelChoice]) -> str:
    """Names the kernels chosen, so that an interrupted confirmation is only gone on with for the same ones."""
    text = repr([(sorted(choice.problem.items()), choice.rows, choice.kernel) for choice in choices])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
