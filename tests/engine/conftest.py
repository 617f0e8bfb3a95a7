"""A model of a few lines for tests of the engine's logic, and the real small model for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.cache import PAGE, Step
from octavo.engine import Delta, Engine, EngineOptions, Ticket
from octavo.kernels.reference import largest
from octavo.schemes import TensorSpec
from octavo.text import Text

EOS = 256
VOCABULARY = 257


def byte_text() -> Text:
    """A tokenizer whose tokens are the 256 bytes and one end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return Text(tokenizer, {"eos_token": "<end>"})


class HistoryModel:
    """Logits are a fixed random function of all tokens so far, which it reads back from the pages it was given.

    The cache holds each token and a digest of all tokens up to it, computed from the digest in the place before: as with real keys and
    values, a page depends on everything before it. So a wrong page, a page reused for another prefix, or a wrong position changes the
    answer. It asserts that no step writes a slot twice.
    """

    name = "history"
    vocab_size = VOCABULARY
    kv_heads: list[int] = [1]          # noqa: RUF012
    head_dims: list[int] = [1]         # noqa: RUF012
    cache_spec = TensorSpec("fp32")
    eos_token_ids = (EOS,)

    def __init__(self, *, max_model_len: int = 512, script: Callable[[list[int]], np.ndarray | None] | None = None) -> None:
        self.max_model_len, self.text, self.script = max_model_len, byte_text(), script
        self.steps = 0
        self.rows: list[int] = []
        self.before_step: Callable[[Step], None] = lambda step: None

    def new_pool(self, pages: int) -> np.ndarray:
        return np.full((pages * PAGE, 2), -1, np.int64)

    def best(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return largest(logits)

    def copy_page(self, pool: np.ndarray, source: int, target: int) -> None:
        pool[target * PAGE : (target + 1) * PAGE] = pool[source * PAGE : (source + 1) * PAGE]

    def forward(self, step: Step, pool: Any) -> np.ndarray:
        self.before_step(step)
        self.steps += 1
        self.rows.append(len(step.tokens))
        assert len(set(step.slots.tolist())) == len(step.slots), "two rows write one slot"
        wanted, rows = set(step.select.tolist()), {}
        for s in range(len(step.lengths)):
            table, first = step.tables[s], int(step.lengths[s] - step.starts[s + 1] + step.starts[s])
            for place, row in enumerate(range(step.starts[s], step.starts[s + 1]), first):
                slot, before = self._slot(table, place), pool[self._slot(table, place - 1), 1] if place else 0
                assert step.positions[row] == place and step.slots[row] == slot
                pool[slot] = step.tokens[row], (int(before) * 1000003 + int(step.tokens[row]) + 1) % (1 << 61)
            history = np.concatenate([pool[p * PAGE : (p + 1) * PAGE] for p in table])
            for place, row in enumerate(range(step.starts[s], step.starts[s + 1]), first):
                if row in wanted:
                    rows[row] = self.logits(history[: place + 1, 0].tolist(), int(history[place, 1]))
        return np.array([rows[r] for r in step.select.tolist()], np.float32).reshape(len(step.select), VOCABULARY)

    @staticmethod
    def _slot(table: np.ndarray, place: int) -> int:
        return int(table[place // PAGE]) * PAGE + place % PAGE

    def logits(self, history: list[int], digest: int | None = None) -> np.ndarray:
        scripted = self.script(history) if self.script else None
        if scripted is not None:
            return scripted
        if digest is None:
            digest = 0
            for token in history:
                digest = (digest * 1000003 + token + 1) % (1 << 61)
        logits = np.random.Generator(np.random.Philox(digest)).normal(size=VOCABULARY) * 3
        logits[EOS] = -20
        return logits.astype(np.float32)


def one_hot(token: int) -> np.ndarray:
    """Logits that make `token` certain."""
    logits = np.full(VOCABULARY, -30, np.float32)
    logits[token] = 30
    return logits


def spelling(answer: str, prompt_length: int) -> Callable[[list[int]], np.ndarray]:
    """A script that makes the model write `answer` and then its end token."""
    ids = [*byte_text().encode(answer), EOS]
    return lambda history: one_hot(ids[min(len(history) - prompt_length, len(ids) - 1)])


def read(ticket: Ticket) -> dict[int, list[Delta]]:
    """All deltas of a ticket by choice."""
    choices: dict[int, list[Delta]] = {}
    for delta in ticket:
        choices.setdefault(delta.choice, []).append(delta)
    return choices


def tokens(deltas: list[Delta]) -> list[int]:
    return [t for d in deltas for t in d.tokens]


def words(deltas: list[Delta]) -> str:
    return "".join(d.text for d in deltas)


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """Started engines on HistoryModel, stopped at the end; their pages must all be free then."""
    engines: list[Engine] = []

    def make(model: Any = None, *, start: bool = True, **options: Any) -> Engine:
        options = {"max_batch": 8, "max_batch_tokens": 64, "kv_pages": 64, **options}
        engine = Engine(model or HistoryModel(), EngineOptions(**options))
        engines.append(engine)
        return engine.start() if start else engine

    yield make
    for engine in engines:
        engine.stop()
        engine._pool.check([])
        assert engine._queued == 0
