"""A whole text model in one native call: the same numbers as through its parts, from any ids, masks and segments; what it does not cover runs as before."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

from octavo import _native, layouts, modules, qtensor, schemes
from octavo.kernels.native import NativeWeight
from octavo.kernels.rows import RowsOps
from octavo.modules.from_ids import _FromIds

SIZES = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 40,
         "type_vocab_size": 2}
MODELS = {"bert": (BertConfig, BertModel), "roberta": (RobertaConfig, RobertaModel), "electra": (ElectraConfig, ElectraModel)}


def built(name: str, scheme: str = "W8A16") -> Any:
    torch.manual_seed(0)
    config, cls = MODELS[name]
    net = cls(config(**SIZES, **({"embedding_size": 32} if name == "electra" else {}))).eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1, 0.3)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    return modules.quantize(net, scheme)


def by_parts(model: Any) -> Any:
    parts = copy.deepcopy(model)
    del parts.forward, parts.encoder.forward
    return parts


@pytest.fixture(scope="module", params=MODELS)
def model(request: Any) -> Any:
    return built(request.param)


def ids(lengths: list[int], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask): padded with 1, which is RoBERTa's padding, on the right or on the left"""
    torch.manual_seed(1)
    place = torch.arange(max(lengths))[None]
    most, own = max(lengths), torch.tensor(lengths)[:, None]
    mask = place >= most - own if left else place < own
    return torch.where(mask, torch.randint(2, 100, mask.shape), 1), mask


def close(one: Any, other: Any, mask: torch.Tensor) -> None:
    torch.testing.assert_close(one.last_hidden_state[mask], other.last_hidden_state[mask], atol=2e-5, rtol=1e-4)
    assert (one.last_hidden_state[~mask] == 0).all()
    if hasattr(one, "pooler_output") and mask[:, 0].all():
        torch.testing.assert_close(one.pooler_output, other.pooler_output, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [[1], [7], [9, 9], [12, 1, 30]])
def test_as_through_its_parts(model: Any, lengths: list[int]) -> None:
    assert isinstance(model.forward, _FromIds)
    numbers, mask = ids(lengths)
    segments = torch.randint(0, 1 if type(model) is RobertaModel else 2, mask.shape)
    parts = by_parts(model)
    for kind in (torch.int64, torch.bool, torch.float32):
        given = {"attention_mask": mask.to(kind), "token_type_ids": segments}
        close(model(numbers, **given), parts(numbers, **given), mask)
    if mask.all():
        close(model(numbers), parts(numbers), mask)
    assert list(model(numbers, attention_mask=mask)) == list(parts(numbers, attention_mask=mask))


def test_padding_on_the_left(model: Any) -> None:
    numbers, mask = ids([5, 11], left=True)
    parts = by_parts(model)
    found = model(numbers, attention_mask=mask.long())
    close(found, parts(numbers, attention_mask=mask.long()), mask)
    if found.get("pooler_output") is not None:
        torch.testing.assert_close(found.pooler_output, model.pooler(found.last_hidden_state))
    nothing = model(numbers, attention_mask=torch.zeros_like(numbers))
    assert (nothing.last_hidden_state == 0).all()


def test_what_it_does_not_cover(model: Any) -> None:
    numbers, mask = ids([8, 8])
    parts = by_parts(model)
    backwards = torch.arange(9, 1, -1)[None].expand(2, 8)
    close(model(numbers, position_ids=backwards), parts(numbers, position_ids=backwards), mask)
    rows = torch.randn(2, 8, model.embeddings.word_embeddings.embedding_dim)
    close(model(inputs_embeds=rows), parts(inputs_embeds=rows), mask)
    torch.testing.assert_close(model(numbers, return_dict=False)[0], parts(numbers).last_hidden_state, atol=2e-5, rtol=1e-4)
    seen: list[int] = []
    handle = model.encoder.layer[1].attention.register_forward_hook(lambda *_: seen.append(1))
    model(numbers)
    handle.remove()
    assert seen == [1]
    with pytest.raises(IndexError, match="token 100 is outside the table of 100"):
        model(torch.tensor([[3, 100]]))
    with pytest.raises(IndexError, match="position"):
        model(torch.full((1, 60), 5))
    with pytest.raises(IndexError, match="segment"):
        model(numbers, token_type_ids=torch.full_like(numbers, 2))


def test_company_copies_and_changes() -> None:
    quantized = built("bert", "W8A8")
    numbers, mask = ids([12, 5, 30])
    together = quantized(numbers, attention_mask=mask).last_hidden_state
    for i, length in enumerate([12, 5, 30]):
        assert torch.equal(quantized(numbers[i : i + 1, :length]).last_hidden_state[0], together[i, :length])
    twin = copy.deepcopy(quantized)
    assert twin.forward.model is twin and torch.equal(twin(numbers, attention_mask=mask).last_hidden_state, together)
    with torch.no_grad():
        quantized.embeddings.LayerNorm.bias.add_(1)
    assert not torch.equal(quantized(numbers, attention_mask=mask).last_hidden_state, together)
    assert torch.equal(twin(numbers, attention_mask=mask).last_hidden_state, together)


@pytest.mark.parametrize("isa", _native.available_isas())
@pytest.mark.parametrize("scheme", ["W8", "W8g64", "W8g64z", "W4g64", "W8g32"])
def test_rows_of_a_table(isa: str, scheme: str) -> None:
    values = np.random.default_rng(0).normal(size=(50, 136)).astype(np.float32)
    tensor = qtensor.quantize(values, schemes.parse(scheme).weight)
    program = RowsOps(1, isa).capture_ids(lambda ops: (ops.look_up(NativeWeight(layouts.pack(tensor)), "tokens"), None))
    numbers = np.random.default_rng(1).integers(0, 50, (3, 7))
    out = np.empty((21, 136), np.float32)
    program.run(numbers, None, None, -1, out, None)
    np.testing.assert_allclose(out, np.asarray(tensor.dequantize())[numbers.reshape(-1)], rtol=1e-6, atol=0)


def test_threads_that_moved_may_still_run_anywhere() -> None:
    before = set(Path("/proc/self/task").iterdir())
    team = _native.Team(2)
    mine = set(Path("/proc/self/task").iterdir()) - before
    weight = NativeWeight(layouts.pack(qtensor.quantize(np.ones((16, 64), np.float32), schemes.parse("W8").weight)))
    x, y = np.ones((2, 64), np.float32), np.empty((2, 16), np.float32)
    for _ in range(50):
        _native.Immediate(team).linear(weight.native, x, None, y)
        threading.Event().wait(0.001)  # the member falls asleep, and is woken onto some core
    allowed = os.sched_getaffinity(0)
    assert len(mine) == 1 and all(os.sched_getaffinity(int(thread.name)) == allowed for thread in mine)
