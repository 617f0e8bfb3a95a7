"""fit_cache(): the smallest key-value cache with which the whole model, weights included, has lost no more than a limit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ..errors import OctavoError
from ..loading import CacheSearch, LoadedModel
from .earlier import room_for
from .online import Online
from .receipt import Receipt
from .receipt_of import Check

TRIES = 5
SHRINK, SAFETY = 0.7, 0.9  # of what the cache may lose, where the whole lost more than the sum of its parts


def fit_cache(online: Online, max_kl: float, quantized: bool, check: Check = lambda: None) -> Receipt:
    """Sets the cache of `online.loaded`, which comes with a bfloat16 one; returns the receipt of the model with it.

    What the weights have lost is known first, and the cache gets what they leave; then both are measured together, and where that is above the limit the cache
    gets less. Where the weights alone are above it, or their loss is not known, theirs is the receipt. quantized: whether a precision of the weights was
    asked for. `check` may raise to end it.
    """
    loaded = online.loaded
    original: LoadedModel | None = None

    def receipt_of_it(one: Online) -> Receipt:
        nonlocal original
        if (known := one.kept(sure=True)) is not None:
            return known
        with suppress(OctavoError):  # measure() meets it too, and makes it the reason
            original = original or one.open_original(check)
        return one.measure(check, original=original)

    weights = receipt_of_it(replace(online, changed=quantized))
    if not weights.kl <= max_kl:
        return weights
    search, room = CacheSearch(loaded), room_for(max_kl, weights, apart=online.before.status == "measured")
    for _ in range(TRIES):
        choice = search.choose(room) if room > 0 else search.give_up(max_kl)
        if choice.bytes_per_token == choice.bytes_with_bf16:
            return weights
        both = receipt_of_it(online)
        if both.status != "measured" or both.kl <= max_kl:
            return both
        room *= min(SHRINK, SAFETY * (max_kl - weights.kl) / max(both.kl - weights.kl, 1e-12))
    search.give_up(max_kl)
    return weights
