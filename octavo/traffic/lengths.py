"""Random prompts of a length in tokens, for a model whose vocabulary only the server knows: ask twice, and see what a word costs."""

from __future__ import annotations

import asyncio

from ..errors import OctavoError
from .client import Client
from .prompts import Prompts, random_words
from .sample import Sample
from .target import Target

PROBES = (20, 80)  # words


def random_tokens(target: Target, prompt_tokens: int, max_tokens: int, count: int, seed: int = 0) -> Prompts:
    """`count` prompts of about `prompt_tokens` tokens as the server counts them, its template included. Raises OctavoError where it does not answer."""
    counts = [asyncio.run(_probe(target, words, seed)) for words in PROBES]
    each = (counts[1] - counts[0]) / (PROBES[1] - PROBES[0])
    around = counts[0] - each * PROBES[0]                # what the template adds
    if not each > 0:
        raise OctavoError("the server does not say how many tokens a prompt has", where=target.root, remedy="give prompts with --prompts FILE.jsonl")
    words = max(1, round((prompt_tokens - around) / each))
    found = random_words(words, max_tokens, count, seed)
    return Prompts(f"random words, {prompt_tokens} tokens in, {max_tokens} out", found.items, ignore_end=True)


async def _probe(target: Target, words: int, seed: int) -> int:
    """Tokens of a prompt of so many random words."""
    client, sample = Client(target), Sample(0, 0.0)
    await client.ask(random_words(words, 1, 1, seed=-1 - seed)[0], sample)
    client.close()
    check(sample, target)
    return sample.prompt_tokens


def check(sample: Sample, target: Target) -> None:
    """Raises OctavoError where a request failed."""
    if sample.error:
        raise OctavoError(f"the server does not answer a request: {sample.error}: {sample.detail.rstrip('.')}", where=target.root,
                          remedy="is it the right address, model and endpoint (--endpoint completions where there is no chat template)?")
