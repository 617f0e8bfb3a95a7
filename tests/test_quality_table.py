"""benchmarks/quality: who is held against whom, and how calibration tokens are cut."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from quality.calibration_ids import rows_of
from quality.table import markdown, pairs


def row(library: str, method: str, scheme: str, kl: float, bits: float = 4.25) -> dict[str, Any]:
    return {"name": f"{library}-{method}-{scheme}", "library": library, "version": "1.0 (more)", "method": method, "scheme": scheme, "rows": 32,
            "bits": bits, "wall_s": 100 * kl, "cpu_s": 40 * kl, "busy": False, "peak_rss_mb": 1000, "tokens": 511, "original_perplexity": {"value": 20.0},
            "kl": {"mean": kl, "low": kl, "high": kl}, "perplexity": {"value": 21.0}, "perplexity_ratio": {"value": 1.05}, "top1_agreement": {"value": 0.9}}


def test_ours_is_held_against_the_same_method_and_scheme_and_types_of_its_size() -> None:
    ours = row("octavo", "gptq", "w4g64", 0.1)
    same, other = row("llmcompressor", "gptq", "w4g64", 0.2), row("gptqmodel", "gptq", "w3g64", 0.2)
    kind, mix = row("llamacpp", "folded", "iq4_xs", 0.3), row("llamacpp", "imatrix", "iq4_xs", 0.3)
    assert pairs([ours, same, other, kind, mix]) == [(ours, same), (ours, kind)]


def test_only_the_same_method_is_a_rival() -> None:
    ours = row("octavo", "smoothquant-gptq", "w8a8", 0.1)
    same, less = row("llmcompressor", "smoothquant-gptq", "w8a8", 0.2), row("llmcompressor", "gptq", "w8a8", 0.3)
    assert pairs([ours, same, less]) == [(ours, same)]
    clipped = row("octavo", "awq-gptq", "w4g64", 0.1)
    assert pairs([clipped, row("llmcompressor", "awq", "w4g64", 0.2)]) == []


def test_learned_rounding_is_held_against_ours_where_both_learned() -> None:
    ours, theirs = row("octavo", "gptq", "w2g64z", 0.2), row("autoround", "signround", "w2g64z", 0.3)
    assert pairs([ours, theirs]) == [(ours, theirs)]
    learned = row("octavo", "autoround", "w2g64z", 0.1)
    assert pairs([ours, theirs, learned]) == [(learned, theirs)]
    assert pairs([ours, theirs, row("octavo", "autoround", "w4g64", 0.1)]) == [(ours, theirs)]


def test_table_holds_ratios_and_every_checkpoint_by_size() -> None:
    rows = [row("llmcompressor", "gptq", "w4g64", 0.2), row("octavo", "gptq", "w4g64", 0.1), row("gptqmodel", "gptq", "w2g64z", 0.5, 2.3)]
    text = markdown({"model": "m", "text": "t.txt", "context": 512, "windows": 1, "rows": rows})
    assert "| gptq w4g64 | llmcompressor 1.0 | 32 | 0.1000 | 0.2000 | 0.50 | 21.000 | 21.000 | 1.00 | 0.50 | 0.50 |" in text and "Other work" not in text
    rows[0]["busy"] = True  # its wall time says nothing, its processor time does
    busy = markdown({"model": "m", "text": "t.txt", "context": 512, "windows": 1, "rows": rows})
    assert "| 1.00 | - | 0.50 |" in busy and "| 20 s |" not in busy and "| 10 s |" in busy and "other work" in busy
    assert text.index("gptqmodel-gptq-w2g64z") < text.index("octavo-gptq-w4g64") < text.index("llmcompressor-gptq-w4g64")


def test_calibration_rows_begin_as_the_tokenizer_begins_texts() -> None:
    assert rows_of(np.arange(10), [], 2, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert rows_of(np.arange(10), [99], 3, 4).tolist() == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8]]
    with pytest.raises(SystemExit, match="10 tokens, fewer than 3 rows of 4"):
        rows_of(np.arange(10), [], 3, 4)
