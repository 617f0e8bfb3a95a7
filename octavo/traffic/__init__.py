"""Load on a server that speaks OpenAI's API, and what its users would see. For every verb that measures a server.

    with LaunchedServer("model.gguf", ["--quantization", "4bit"]) as server:
        target = Target(server.url, first_model(Target(server.url, "")))
        result = measure(target, read_prompts(Path("questions.jsonl"), 128), Load(Closed(20), duration=30, warmup=3), server=server)
    result.summary.latency.p95, result.summary.tokens_per_s, result.server["memory"]["peak_rss"]

prompts -> arrivals say when -> drive sends, through client -> samples -> summary; difference says whether two results differ.
"""

from .arrivals import Arrivals, Closed, Open
from .difference import Difference, Series, differences
from .drive import Load, Recording, drive
from .facts import server_facts
from .launched import LaunchedServer
from .lengths import random_tokens
from .measure import measure
from .percentiles import Spread, corrected, spread
from .prompts import Prompt, Prompts, after, random_words, read_prompts
from .result import Result, read_results, write_results
from .sample import Sample
from .service_level import ServiceLevel, seconds
from .summary import Summary, summarize
from .target import Target, first_model

__all__ = ["Arrivals", "Closed", "Difference", "LaunchedServer", "Load", "Open", "Prompt", "Prompts", "Recording", "Result", "Sample", "Series",
           "ServiceLevel", "Spread", "Summary", "Target", "after", "corrected", "differences", "drive", "first_model", "measure", "random_tokens",
           "random_words", "read_prompts", "read_results", "seconds", "server_facts", "spread", "summarize", "write_results"]
