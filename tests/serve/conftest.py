"""Servers to test against: in process on a model that says what it is told to, and the real process on the real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.cache import PAGE, Step
from octavo.engine import Engine, EngineOptions
from octavo.kernels.reference import largest
from octavo.schemes import Plan, TensorSpec
from octavo.serve.app import build_app
from octavo.serve.options import ServerOptions
from octavo.serve.service import Service
from octavo.text import Text

END = 256
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE


def byte_text(template: str | None) -> Text:
    """A tokenizer whose tokens are the 256 bytes and one end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return Text(tokenizer, {"eos_token": "<end>", "chat_template": template})


class Parrot:
    """A model that answers with what stands between the last « and » of its prompt, and then ends; without them it writes a's for ever.

    `pause` seconds per step make it slow.
    """

    name = "parrot"
    vocab_size = 257
    max_model_len = 2048
    kv_heads: list[int] = [1]          # noqa: RUF012
    head_dims: list[int] = [1]         # noqa: RUF012
    cache_spec = TensorSpec("fp32")
    eos_token_ids = (END,)
    report = SimpleNamespace(runs=[])

    def __init__(self, template: str | None = TOOL_TEMPLATE, pause: float = 0.0) -> None:
        self.text, self.plan, self.pause = byte_text(template), Plan.parse("W16A16C16"), pause

    def new_pool(self, pages: int) -> Any:
        return np.full(pages * PAGE, -1, np.int64)

    def best(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return largest(logits)

    def copy_page(self, pool: np.ndarray, source: int, target: int) -> None:
        pool[target * PAGE : (target + 1) * PAGE] = pool[source * PAGE : (source + 1) * PAGE]

    def forward(self, step: Step, pool: Any) -> np.ndarray:
        import time

        time.sleep(self.pause)
        pool[step.slots] = step.tokens
        rows = []
        for row in step.select:
            s = int(np.searchsorted(step.starts, row, side="right")) - 1
            length = int(step.positions[row]) + 1
            history = np.concatenate([pool[p * PAGE : (p + 1) * PAGE] for p in step.tables[s]])[:length]
            rows.append(self.logits(b"".join(self.text.token_bytes(int(t)) for t in history)))
        return np.array(rows, np.float32).reshape(len(step.select), self.vocab_size)

    def logits(self, history: bytes) -> np.ndarray:
        _, opened, rest = history.rpartition("«".encode())
        told, closed, after = rest.partition("»".encode())
        wanted = b"a"
        if opened and closed:
            written = after.partition(b"\nassistant: ")[2] if b"\nassistant: " in after else after
            wanted = told[len(written) : len(written) + 1]
        wanted_id = next(i for i in range(256) if self.text.token_bytes(i) == wanted) if wanted else END
        logits = np.zeros(self.vocab_size, np.float32)
        logits[wanted_id] = 30
        return logits


@dataclass
class Running:
    """A server in this process, and a client of it."""

    client: httpx.AsyncClient
    service: Service
    engine: Engine

    async def chat(self, say: str, **more: Any) -> httpx.Response:
        content = f"Say «{say}»"
        return await self.client.post("/v1/chat/completions", json={"model": "parrot", "messages": [{"role": "user", "content": content}], **more})

    async def pages_used(self) -> float:
        """What /metrics says once the engine had time to free what was left."""
        used = -1.0
        for _ in range(100):
            text = (await self.client.get("/metrics")).text
            used = float(next(line.split()[1] for line in text.splitlines() if line.startswith("octavo_pages_used ")))
            if used == 0:
                break
            await asyncio.sleep(0.02)
        return used


Serving = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serving() -> Serving:
    """`async with serving(...) as server`: options of the server by name, `engine=` those of the engine, `model=`."""

    @asynccontextmanager
    async def serve(model: Any = None, engine: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Running]:
        service = Service(ServerOptions(**{"names": ("parrot",), **options}))
        running = Engine(model or Parrot(), EngineOptions(**{"kv_pages": 256, "max_batch": 16, "max_choices": 128, **(engine or {})}))
        running.start()
        service.open(running.loaded, running)
        transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://octavo", timeout=60) as client:
                yield Running(client, service, running)
        finally:
            await asyncio.to_thread(running.stop)

    return serve
