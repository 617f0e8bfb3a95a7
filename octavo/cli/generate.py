"""`octavo generate MODEL [PROMPT]`: one answer on the terminal, by the engine of the server without HTTP."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OctavoError, UsageError
from ._command import Command
from ._model import ModelName, load_model, loss_line
from ._policy import PolicyOptions, use_policy

if TYPE_CHECKING:
    from ..engine import Delta
    from ..loading import LoadedModel


@dataclass
class Arguments(ModelName):
    prompt: str | None = None
    """The prompt; without it, --file or standard input."""


@dataclass
class Options(PolicyOptions, Arguments):
    _: KW_ONLY

    file: Path | None = None
    """Read the prompt from this file."""

    system: str | None = None
    """A system message."""

    raw: bool = False
    """Continue the prompt as it is, without the model's chat template."""

    max_tokens: int = 256
    """Most tokens of the answer."""

    temperature: float = 0.0
    """0: the likeliest token every time."""

    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""

    top_k: int = 0
    """Draw from this many likeliest tokens; 0: all."""

    min_p: float = 0.0
    """Draw from tokens at least this likely, relative to the likeliest."""

    repetition_penalty: float = 1.0
    """Above 1: tokens that were there before get less likely."""

    seed: int | None = None
    """The same seed gives the same answer."""

    stop: list[str] | None = None
    """Strings that end the answer."""

    schema: Path | None = None
    """A file with a JSON schema that the answer follows."""

    n: int = 1
    """Number of answers."""

    stream: bool = True
    """Print the answer as it comes."""

    json: bool = False
    """Print one JSON object with the answers, why they ended, and the counts and times."""

    receipt: bool = False
    """Measure first what the precision that was asked for has lost, on a few hundred tokens, unless that is known; it is kept for the next time."""

    stats: bool = False
    """Print speeds on standard error."""


def run(options: Options) -> int:
    """Answer a prompt on the terminal: text on standard output, everything else on standard error."""
    prompt = _read_prompt(options)
    schema = _read_schema(options.schema)

    from ..engine import Engine, EngineOptions, Finish, Request, Sampling

    began = time.perf_counter()
    loaded = load_model(options)
    policy, told = use_policy(options, loaded, engine=("max_batch_tokens",))
    if told:
        print(told, file=sys.stderr)
    load_seconds = time.perf_counter() - began
    print(f"{loaded.name} as {loaded.plan.short} in {load_seconds:.2f} s: {'; '.join(map(str, loaded.report.runs))}", file=sys.stderr)
    if loaded.report.cache_choice:
        print(loaded.report.cache_choice, file=sys.stderr)
    if quality := loss_line(options, loaded, options.receipt):
        print(quality, file=sys.stderr)
    ids = _tokens(loaded, prompt, options)
    sampling = Sampling(
        temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, min_p=options.min_p, seed=options.seed,
        repetition_penalty=options.repetition_penalty, max_tokens=options.max_tokens, stop=tuple(options.stop or ()),
        grammar={"json_schema": schema} if schema is not None else None,
    )
    live = options.stream and options.n == 1 and not options.json
    choices: list[list[Delta]] = [[] for _ in range(options.n)]
    first = 0.0
    rows = {"max_batch_tokens": policy.max_batch_tokens} if policy is not None and policy.max_batch_tokens is not None else {}
    engine_options = EngineOptions(max_batch=max(options.n, 1), max_choices=max(options.n, 1), prefix_cache=options.n > 1, **rows)
    with Engine(loaded, engine_options) as engine:
        began = time.perf_counter()
        ticket = engine.submit(Request(tuple(ids), sampling, n=options.n))
        for delta in ticket:
            first = first or time.perf_counter() - began
            choices[delta.choice].append(delta)
            if live:
                print(delta.text, end="", flush=True)
        seconds = time.perf_counter() - began
    answers = ["".join(d.text for d in deltas) for deltas in choices]
    tokens = sum(len(d.tokens) for deltas in choices for d in deltas)
    if options.json:
        print(json.dumps({
            "model": loaded.name, "plan": str(loaded.plan), "prompt_tokens": len(ids), "completion_tokens": tokens, "load_seconds": round(load_seconds, 3),
            "first_token_seconds": round(first, 4), "seconds": round(seconds, 4),
            "choices": [{"text": text, "finish_reason": deltas[-1].finish} for text, deltas in zip(answers, choices, strict=True)],
        }, ensure_ascii=False))
    elif live:
        print()
    else:
        for number, text in enumerate(answers):
            print(text if options.n == 1 else f"--- {number + 1} ---\n{text}")
    if options.stats:
        after = (tokens - options.n) / (seconds - first) if tokens > options.n and seconds > first else 0.0
        print(f"prompt: {len(ids)} tokens, first answer token after {first:.3f} s ({len(ids) / first:.0f} tokens/s); "
              f"answer: {tokens} tokens, {after:.1f} tokens/s after the first", file=sys.stderr)
    failed = [d.error for deltas in choices for d in deltas if d.finish is Finish.ERROR]
    if failed:
        raise OctavoError(failed[0] or "the answer failed", where=loaded.name)
    return 0


def _read_prompt(options: Options) -> str:
    if options.prompt is not None and options.file is not None:
        raise UsageError("a prompt and a file", where="--file", remedy="give one of the two")
    try:
        if options.file is not None:
            return options.file.read_text(encoding="utf-8")
        return options.prompt if options.prompt is not None else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompt: {error}", where=str(options.file or "standard input")) from None


def _read_schema(path: Path | None) -> object:
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the schema: {error}", where=str(path)) from None


def _tokens(loaded: LoadedModel, prompt: str, options: Options) -> list[int]:
    """Through the chat template unless --raw is given or the model has none."""
    text = loaded.text
    if options.raw or not text.has_chat_template:
        if options.system:
            raise UsageError("a system message needs a chat template", where="--system", remedy="leave it out or do not use --raw")
        return text.encode(prompt)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    return text.encode_chat(text.chat([*messages, {"role": "user", "content": prompt}]))


COMMAND = Command("generate", Options, run)
