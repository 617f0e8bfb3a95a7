"""The proof of quality: pure functions on logits, the loop that gets logits of a text, and two models side by side."""

from __future__ import annotations

from .comparison import Comparison, compare, compare_all
from .divergence import Divergence, Rows
from .intervals import Estimate, estimate, mean_interval
from .measures import kl_divergence, negative_log_likelihood, same_top
from .own_text import OWN_TEXT
from .perplexity import Model, Perplexity, Windows, logits_of, perplexity, summarize, windows_of
from .recall import Recall, copy_task, needle_task
from .recording import Recording, record, recorded_bytes
from .shares import quantile_interval, share, share_difference
from .texts import EvaluationText, read_text

__all__ = ["OWN_TEXT", "Comparison", "Divergence", "Estimate", "EvaluationText", "Model", "Perplexity", "Recall", "Recording", "Rows", "Windows",
           "compare", "compare_all", "copy_task", "estimate", "kl_divergence", "logits_of", "mean_interval", "needle_task", "negative_log_likelihood",
           "perplexity", "quantile_interval", "read_text", "record", "recorded_bytes", "same_top", "share", "share_difference", "summarize", "windows_of"]
