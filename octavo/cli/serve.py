"""`octavo serve MODEL`: an HTTP server that speaks OpenAI's API."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import OctavoError, UsageError
from ._command import Command
from ._model import load_model
from ._policy import PolicyOptions, use_policy

if TYPE_CHECKING:
    from ..engine import Engine, EngineOptions
    from ..loading import LoadedModel
    from ..quality.online import Online
    from ..serve.server import Server
    from ..serve.shadow import Shadow

COMPARE_CACHE = 64 << 20  # bytes of the key-value cache of a second precision
JOIN = 5.0  # seconds that a receipt in the making gets to end
log = logging.getLogger(__name__)


@dataclass
class Options(PolicyOptions):
    _: KW_ONLY

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""

    port: int = 8000
    """Port to listen on; 0 takes a free one."""

    served_model_name: list[str] | None = None
    """Name that clients give as `model`; may be repeated. Default: the model's own."""

    api_key: str | None = None
    """Key that clients must send; default: OCTAVO_API_KEY, or none."""

    protect_metrics: bool = False
    """Ask for the key on /metrics too."""

    cors_origin: list[str] | None = None
    """Origin of web pages that may call this server; may be repeated. Default: none."""

    search_policy: bool = False
    """Search a policy before serving where --policy-dir holds none for this model on this machine; takes up to three minutes, on a GPU ten."""

    max_batch: int | None = None
    """Sequences computed together; default: what the policy says, or 128."""

    max_batch_tokens: int | None = None
    """Rows of one step. More: faster prompts; less: shorter gaps for the others. Default: what the policy says, or 512."""

    max_queue: int = 512
    """Requests that may wait; one more gets status 429."""

    kv_memory_mb: int | None = None
    """Memory of the key-value cache in MB; default: 1 GiB, or two prompts of full length if they need more; at most a quarter of free memory.
    On a GPU: what --gpu-memory-share leaves."""

    gpu_memory_share: float = 0.9
    """Part of a GPU's memory that weights, cache and other programs there may take together; the rest is for activations."""

    prefix_cache: bool = True
    """Reuse the cache of prompts that begin the same."""

    max_tokens: int | None = None
    """Longest answer a request may ask for; default: what the context allows."""

    max_body_bytes: int = 4 << 20
    """Largest body of a request."""

    body_timeout: float = 60.0
    """Seconds a client may take to send its request."""

    request_timeout: float | None = 600.0
    """Seconds from a request to its last token."""

    drain_seconds: float = 30.0
    """Seconds that running requests get to finish when the server is stopped."""

    receipt: Literal["off", "background", "before"] = "background"
    """When to find out what quantizing lost, where that is not known yet: once the server is ready, before, or never."""

    max_kl: float | None = None
    """Refuse to serve a model whose mean KL divergence from its original is above this, in nats per token; measured before the server is ready.
    With --kv-cache auto the cache gets what the weights leave of it."""

    against: str | None = None
    """The original to measure against, where MODEL came quantized; default: MODEL as it is stored, plus what its receipt says."""

    page: bool = True
    """Show a page at /: live figures, the receipt, a playground."""

    compare: str | None = None
    """Load the model a second time in this precision, such as 16bit, and answer as NAME:16bit too, to compare; takes its memory."""

    otlp_endpoint: str | None = None
    """Send a trace of each request to this OpenTelemetry collector, such as http://localhost:4318; default: OTEL_EXPORTER_OTLP_ENDPOINT, or none."""

    shadow_share: float = 0.0
    """Score this share of the finished requests again with the original's weights, such as 0.05, and export how far they drift; takes its memory. 0: none."""

    shadow_budget: float = 0.02
    """What that may take of all cores' time while requests run; when there are none it takes what it needs."""

    log_level: str = "info"
    """debug, info, warning or error."""

    log_format: Literal["text", "json"] = "text"
    """Lines for people, or one JSON object each for collectors."""

    log_requests: bool | None = None
    """A line for every request, without its text; default: with --log-format json."""


def run(options: Options) -> int:
    """Serve a model over HTTP with OpenAI's API; quantizes it while it loads."""
    from ..engine import Engine, EngineOptions
    from ..engine.options import served_limits
    from ..machine import detect
    from ..schemes import choose
    from ..serve.logs import set_up
    from ..serve.options import ServerOptions
    from ..serve.quality import Quality
    from ..serve.server import Server, bind, listening
    from ..serve.tracing import tracing_to
    from ..settings import read_settings

    requests = options.log_format == "json" if options.log_requests is None else options.log_requests
    set_up(_level(options.log_level), options.log_format, requests)
    if options.search_policy and options.policy_dir is None:
        raise UsageError("there is no folder to keep a policy in", where="--search-policy", remedy="name one with --policy-dir")
    if options.max_kl is not None and not 0 <= options.max_kl < float("inf"):
        raise UsageError(f"must be 0 or more, not {options.max_kl}", where="--max-kl", remedy="such as 0.02 nats per token")
    usual_batch, usual_rows = served_limits(False)
    engine_options = EngineOptions(
        max_batch=_given(options.max_batch, usual_batch), max_batch_tokens=_given(options.max_batch_tokens, usual_rows),
        gpu_memory_share=options.gpu_memory_share, max_queue=options.max_queue, prefix_cache=options.prefix_cache,
        kv_memory=options.kv_memory_mb * 1_000_000 if options.kv_memory_mb is not None else None, max_model_len=options.max_model_len,
        request_timeout=options.request_timeout, max_choices=128,
    )
    settings = read_settings()
    api_key = options.api_key if options.api_key is not None else settings.api_key
    server_options = ServerOptions(
        names=tuple(options.served_model_name or [plain_name(options.model)]), api_key=api_key, protect_metrics=options.protect_metrics,
        cors_origins=tuple(options.cors_origin or ()), max_body_bytes=options.max_body_bytes, max_tokens=options.max_tokens,
        body_timeout=options.body_timeout, drain_seconds=options.drain_seconds, page=options.page,
    )
    if options.compare is not None:
        choose(options.compare, detect(options.isa))  # a name that is none is told at once
    listener = bind(options.host, options.port)
    host, port = listening(listener)
    began = time.perf_counter()
    quality = Quality(options.receipt, options.max_kl, _shadow(options))
    endpoint = options.otlp_endpoint or settings.otlp_endpoint
    tracing = tracing_to(endpoint, server_options.names[0]) if endpoint else None  # before the model loads: a missing package is told at once

    def load(check: Callable[[], None]) -> tuple[LoadedModel, Engine]:
        fitted = options.max_kl is not None and (options.kv_cache or "").strip().lower() == "auto"
        loaded = load_model(replace(options, max_kl=None, kv_cache="bf16" if fitted else options.kv_cache), check)
        if fitted:  # first of all: a policy is searched for the model that is served
            quality.fit_cache(lambda: _online(options, loaded), options.quantization is not None, check, options.model)
        free = [name for name in ("max_batch_tokens", "max_batch") if getattr(options, name) is None]
        batch, rows = served_limits(loaded.backend.memory() is not None)
        here = replace(engine_options, max_batch=_given(options.max_batch, batch), max_batch_tokens=_given(options.max_batch_tokens, rows))
        search = (lambda folder: _search(options, here, loaded, folder, check)) if options.search_policy else None
        policy, told = use_policy(options, loaded, search, free)
        if told:
            log.log(logging.INFO if policy is not None else logging.WARNING, "%s", told)
        if not fitted:
            quality.before(lambda: _online(options, loaded), check, options.model)
        chosen = {name: value for name, value in (policy.settings if policy is not None else {}).items() if name in free}
        return loaded, Engine(loaded, replace(here, **chosen))

    def ready(loaded: LoadedModel, engine: Engine) -> None:
        print(greeting(loaded, engine, server_options.names, f"http://{host}:{port}", api_key is not None, time.perf_counter() - began,
                       quality.line), flush=True)
        quality.start(lambda: _online(options, loaded), server.check)
        quality.watch(lambda: _beside(_online(options, loaded), options.cache, server.check), loaded, engine, server.check)
        if options.compare is not None:
            threading.Thread(target=_compare, args=(options, options.compare, engine, server), name="octavo-compare", daemon=True).start()
        threading.Thread(target=loaded.text.prepare, daemon=True).start()  # many texts will come; the first need not wait for it

    server = Server(server_options, load, ready, quality, tracing)
    server.run(listener)
    quality.join(JOIN)
    return 0


def _compare(options: Options, precision: str, first: Engine, server: Server) -> None:
    """Load the second precision while the first serves; its cache holds a few conversations of a playground."""
    from ..engine import Engine
    from ..serve.quality import Interrupted

    name = f"{server.service.options.names[0]}:{precision}"
    try:
        threads = max(1, getattr(first.loaded.backend, "threads", 1) // 2)  # two teams that each want all cores would wait for each other
        loaded = load_model(replace(options, quantization=precision, kv_cache=None, max_kl=None, threads=threads), server.check)
        few = replace(first.options, max_batch=4, max_queue=16, kv_pages=None, kv_memory=COMPARE_CACHE, max_model_len=min(first.max_model_len, 2048))
        server.service.open_second(name, loaded, Engine(loaded, few).start())
        log.info("%s is there to compare: %.0f MB of weights", name, loaded.report.weight_bytes / 1e6)
    except Interrupted:
        return
    except OctavoError as error:
        log.warning("%s cannot be compared: %s", name, error)


def _online(options: Options, loaded: LoadedModel) -> Online:
    from ..quality.online import Online

    changed = options.quantization is not None or options.kv_cache is not None or loaded.cache_spec.format != loaded.report.cache_format  # by the policy
    return Online(loaded, options.model, changed, options.against, options.cache_dir, options.allow_pickle)


def _beside(online: Online, keep: bool, check: Callable[[], None]) -> LoadedModel:
    """The original, to check requests against. Raises UsageError where there is none: MODEL came quantized itself."""
    online.only_original()
    return online.open_original(check, threads=1, keep=keep)


def _shadow(options: Options) -> Shadow | None:
    from ..serve.shadow import Shadow

    if not options.shadow_share:
        return None
    if options.quantization is None and options.kv_cache is None and options.against is None:
        raise UsageError("the model is served as it is stored: there is nothing to check it against", where="--shadow-share",
                         remedy="name its original with --against, or ask for a --quantization")
    return Shadow(options.shadow_share, options.shadow_budget)


def _given(value: int | None, otherwise: int) -> int:
    return otherwise if value is None else value


def _search(options: Options, engine: EngineOptions, loaded: LoadedModel, folder: Path, check: Callable[[], None]) -> None:
    """Tune the model before it serves; `check` may raise to end it."""
    from ..settings import read_settings
    from ..tune import Progress, TuneOptions, tune
    from ..tune.options import GPU_BUDGET

    budget = GPU_BUDGET if loaded.backend.memory() is not None else TuneOptions.budget
    wanted = TuneOptions(budget=budget, max_batch=engine.max_batch, max_batch_tokens=engine.max_batch_tokens,
                         fixed_threads=(options.threads or read_settings().threads) is not None)
    log.info("searching a policy, up to %.0f s", wanted.budget)
    with Progress(wanted.budget, check) as progress:
        tuned = tune(loaded, folder, progress, wanted)
    log.info("policy search: %s; %s", "changed" if tuned.changed else "no change", tuned.why)


def plain_name(model: str) -> str:
    """The name of a model as one says it: a hub id as it is, a folder's or a file's name without what tells its format."""
    path = Path(model)
    if not path.exists():
        return model
    name = path.resolve().name
    if path.is_dir():
        return name
    stem = name.removesuffix(".gguf")
    base, dot, last = stem.rpartition(".")
    return base if dot and last[:1] in ("Q", "F", "B", "I") and last.isupper() else stem


def greeting(loaded: LoadedModel, engine: Engine, names: tuple[str, ...], url: str, keyed: bool, seconds: float,
             quality: str = "") -> str:
    """What is served, in which precision and why, what runs, the memory foreseen and used, and a line to try."""
    report = loaded.report
    body = {"model": names[0], "messages": [{"role": "user", "content": "Name three rivers."}]}
    key = " -H 'Authorization: Bearer KEY'" if keyed else ""
    origin = "mapped from the cache" if report.cache_hit else f"loaded from {report.codec}"
    rows = [
        ("model", f"{', '.join(names)}: {report.model_type}, {origin} in {report.seconds:.1f} s, up to {engine.max_model_len} tokens"),
        ("precision", f"{loaded.plan.short}: {report.reason}"),
        *(("weights", str(one)) for one in report.runs),
        ("runs", f"{report.backend} kernels, {loaded.cache_spec.format} key-value cache, {loaded.kv_bytes_per_token} bytes per token"),
        *(("", note) for note in report.notes),
        ("memory", f"{report.measured_peak / 1e6:.0f} MB at most while loading ({report.predicted_peak / 1e6:.0f} MB predicted), of which weights "
                   f"{report.weight_bytes / 1e6:.0f} MB; key-value cache up to {engine.kv_bytes / 1e6:.0f} MB ({engine.kv_pages} pages)"),
        *([("quality", quality)] if quality else []),
        ("ready", f"after {seconds:.1f} s: {url}/v1"),
        ("try", f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{json.dumps(body)}'"),
    ]
    return "\n".join(f"{label:<10} {text}" for label, text in rows)


def _level(name: str) -> int:
    number = logging.getLevelNamesMapping().get(name.upper())
    if number is None:
        raise UsageError(f"unknown level {name!r}", where="--log-level", remedy="debug, info, warning or error")
    return number


COMMAND = Command("serve", Options, run)
