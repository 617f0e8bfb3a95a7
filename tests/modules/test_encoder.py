"""A whole encoder as one native program: the same numbers as layer by layer, whatever the padding; what it does not cover runs as before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

import octavo
from octavo import modules


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=96, num_hidden_layers=2, num_attention_heads=3, intermediate_size=200, max_position_embeddings=64)
    net = BertModel(config).eval()
    for norm in (m for m in net.modules() if isinstance(m, torch.nn.LayerNorm)):
        torch.nn.init.normal_(norm.weight, 1, 0.3)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    return net


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(0, 100, mask.shape) * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lengths", [[7], [9, 9], [12, 1, 30]])
def test_as_layer_by_layer(model: Any, lengths: list[int], attention: str) -> None:
    inputs = batch(lengths)
    real = inputs["attention_mask"].bool()
    net = copy.deepcopy(model)
    net.set_attn_implementation(attention)
    quantized: Any = modules.quantize(net, "W8A16")
    assert modules.report(quantized).encoders == 1
    with torch.inference_mode():
        fused = quantized(**inputs).last_hidden_state
        plain = copy.deepcopy(quantized)
        del plain.encoder.forward
        single = plain(**inputs).last_hidden_state
        truth = net(**inputs).last_hidden_state
    torch.testing.assert_close(fused[real], single[real], atol=2e-5, rtol=1e-4)
    assert (fused[~real] == 0).all()
    assert (fused - truth)[real].norm() < 0.02 * truth[real].norm()


def test_company_changes_no_bit(model: Any) -> None:
    quantized: Any = modules.quantize(model, "W8A8")
    inputs = batch([12, 5, 30])
    together = quantized(**inputs).last_hidden_state
    for i, length in enumerate([12, 5, 30]):
        alone = quantized(input_ids=inputs["input_ids"][i : i + 1, :length], attention_mask=inputs["attention_mask"][i : i + 1, :length]).last_hidden_state
        assert torch.equal(alone[0], together[i, :length])


def test_what_the_program_does_not_cover(model: Any) -> None:
    quantized: Any = modules.quantize(model, "W8A16")
    inputs = batch([8, 5])
    every = quantized(**inputs, output_hidden_states=True).hidden_states
    assert len(every) == 3
    own = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()  # a mask that differs from row to row
    ordered = quantized(input_ids=inputs["input_ids"], attention_mask=own).last_hidden_state
    torch.testing.assert_close(ordered, model(input_ids=inputs["input_ids"], attention_mask=own).last_hidden_state, atol=0.1, rtol=0.1)


def test_static_scales_copies_and_files(model: Any, tmp_path: Any) -> None:
    inputs = batch([12, 5, 30])
    quantized: Any = octavo.quantize(model, "W8A8tsz", data=[inputs])
    expected = quantized(**inputs).last_hidden_state
    assert torch.equal(copy.deepcopy(quantized)(**inputs).last_hidden_state, expected)
    octavo.save_module(quantized, tmp_path)
    loaded: Any = octavo.load_module(tmp_path, BertModel(model.config))
    assert modules.report(loaded).encoders == 1 and torch.equal(loaded(**inputs).last_hidden_state, expected)
    loaded.encoder.layer[0].output.dense.bias.add_(1)  # what the program was made of has changed
    assert not torch.equal(loaded(**inputs).last_hidden_state, expected)
