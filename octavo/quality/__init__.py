"""The proof of quality: pure functions on logits, and the loop that gets logits of a text."""

from __future__ import annotations

from .intervals import block_bootstrap
from .measures import kl_divergence, negative_log_likelihood, same_top
from .perplexity import Perplexity, Windows, logits_of, perplexity, summarize, windows_of

__all__ = ["Perplexity", "Windows", "block_bootstrap", "kl_divergence", "logits_of", "negative_log_likelihood", "perplexity",
           "same_top", "summarize", "windows_of"]
