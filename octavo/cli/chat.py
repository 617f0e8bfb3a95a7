"""`octavo chat MODEL`: a conversation on the terminal, by the engine of the server without HTTP."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import OctavoError, PromptTooLongError, RequestError, UsageError
from ._command import Command
from ._model import ModelOptions, load_model, loss_line

if TYPE_CHECKING:
    from ..engine import Engine

HELP = "/reset forgets the conversation, /system TEXT sets the system message and forgets, /exit leaves. Ctrl-C stops an answer."


@dataclass
class Options(ModelOptions):
    _: KW_ONLY

    system: str | None = None
    """The system message."""

    max_tokens: int | None = None
    """Most tokens of an answer; default: what the context allows."""

    temperature: float = 0.7
    """0: the likeliest token every time."""

    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability."""

    top_k: int = 0
    """Draw from this many likeliest tokens; 0: all."""

    min_p: float = 0.0
    """Draw from tokens at least this likely, relative to the likeliest."""

    repetition_penalty: float = 1.1
    """Above 1: tokens that were there before get less likely."""

    seed: int | None = None
    """The same seed and the same messages give the same answers."""

    receipt: bool = False
    """Measure first what the precision that was asked for has lost, on a few hundred tokens, unless that is known; it is kept for the next time."""


@dataclass
class Conversation:
    """The messages so far."""

    system: str | None
    turns: list[dict[str, Any]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, Any]]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False when it says goodbye."""
        name, _, rest = line.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self.turns.clear()
        elif name == "/system":
            self.system = rest.strip() or None
            self.turns.clear()
        else:
            print(HELP, file=sys.stderr)
        return True


def run(options: Options) -> int:
    """Talk to a model on the terminal. Reads lines from standard input, so it can be scripted."""
    from ..engine import Engine, EngineOptions

    loaded = load_model(options)
    if not loaded.text.has_chat_template:
        raise UsageError("the model has no chat template", where=options.model, remedy="use `octavo generate`")
    tty = sys.stdin.isatty()
    if tty:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() a line editor and a history)
        print(f"{loaded.name} as {loaded.plan.default}. {HELP}", file=sys.stderr)
    if (tty or options.receipt) and (quality := loss_line(options, loaded, options.receipt)):
        print(quality, file=sys.stderr)
    conversation = Conversation(options.system)
    with Engine(loaded, EngineOptions(max_batch=1, max_model_len=options.max_model_len)) as engine:
        while True:
            try:
                line = input("> " if tty else "").strip()
            except EOFError:
                break
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if line.startswith("/"):
                if not conversation.command(line):
                    break
            elif line:
                conversation.turns.append({"role": "user", "content": line})
                _answer(engine, conversation, options)
    return 0


def _answer(engine: Engine, conversation: Conversation, options: Options) -> None:
    """Stream an answer and keep it; an answer that is stopped is kept as far as it came."""
    from ..engine import Finish

    try:
        ticket = _submit(engine, conversation, options)
    except RequestError as error:
        conversation.turns.pop()
        print(f"octavo: {error}", file=sys.stderr)
        return
    said = ""
    try:
        for delta in ticket:
            said += delta.text
            print(delta.text, end="", flush=True)
            if delta.finish is Finish.ERROR:
                raise OctavoError(delta.error or "the answer failed", where=options.model)
    except KeyboardInterrupt:
        ticket.cancel()
        print(" [stopped]", end="", file=sys.stderr, flush=True)
    print(flush=True)
    conversation.turns.append({"role": "assistant", "content": said})


def _submit(engine: Engine, conversation: Conversation, options: Options) -> Any:
    """Queue the conversation; when it has become too long, without its oldest exchanges."""
    from ..engine import Request, Sampling

    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, top_k=options.top_k, min_p=options.min_p, seed=options.seed,
                        repetition_penalty=options.repetition_penalty, max_tokens=options.max_tokens)
    text = engine.loaded.text
    while True:
        try:
            return engine.submit(Request(tuple(text.encode_chat(text.chat(conversation.messages))), sampling))
        except PromptTooLongError:
            if len(conversation.turns) < 3:
                raise
            del conversation.turns[:2]
            print("[the oldest messages were forgotten: the context is full]", file=sys.stderr)


COMMAND = Command("chat", Options, run)
