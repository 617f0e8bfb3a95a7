"""The proof of quality: pure functions on logits, the loop that gets logits of a text, and two models side by side."""

from __future__ import annotations

from .comparison import Comparison, compare, compare_all
from .divergence import Divergence, Rows
from .intervals import Estimate, block_bootstrap, estimate, quantile_bootstrap
from .measures import kl_divergence, negative_log_likelihood, same_top
from .perplexity import Perplexity, Windows, logits_of, perplexity, summarize, windows_of
from .recording import Recording, record, recorded_bytes

__all__ = ["Comparison", "Divergence", "Estimate", "Perplexity", "Recording", "Rows", "Windows", "block_bootstrap", "compare", "compare_all",
           "estimate", "kl_divergence", "logits_of", "negative_log_likelihood", "perplexity", "quantile_bootstrap", "record", "recorded_bytes",
           "same_top", "summarize", "windows_of"]
