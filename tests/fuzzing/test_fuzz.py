"""A slice of `make fuzz`: a few hundred mutated checkpoints of every codec."""

from __future__ import annotations

import pytest

from octavo.checkpoints import codecs

from .run import fuzz
from .seeds import SEEDS

FILES = 150


def test_every_codec_is_fuzzed() -> None:
    assert codecs().keys() - SEEDS.keys() == {"nvfp4"}, "a codec has no seed in tests/fuzzing/seeds.py"  # nvfp4 is a name for writing: no file is of it


@pytest.mark.parametrize("codec", sorted(SEEDS))
def test_mutated_files_are_refused_or_read_right(codec: str) -> None:
    results = fuzz(codec, FILES)
    refused = sum(count for what, count in results.items() if what.startswith("refused"))
    assert sum(results.values()) == FILES and 0.3 * FILES < refused < FILES, results
