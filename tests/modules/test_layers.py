"""Every kind of layer against torch's own: in its scheme the result is float arithmetic on the rounded numbers, and near the float layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import octavo
from octavo import modules
from octavo.errors import SchemeError, UsageError

SCHEMES = ["W8A16", "W8A8", "W8A8g64", "W8A8ts", "W8A8tsz"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def error(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape and one.dtype == other.dtype
    return float((one - other).norm() / one.norm())


def compare(module: nn.Module, scheme: str, *inputs: Any, most: float = 0.02) -> nn.Module:
    quantized = modules.quantize(module, scheme, data=[inputs])
    with torch.inference_mode():
        one, other = module.eval()(*inputs), quantized(*inputs)
    while isinstance(one, tuple):
        one, other = one[0], other[0]
    assert 0 < error(one, other) < most
    return quantized


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 70), (3, 5, 70), (70,), (300, 70)])
def test_linear(scheme: str, shape: tuple[int, ...]) -> None:
    compare(nn.Linear(70, 33), scheme, torch.randn(shape))


@pytest.mark.parametrize("scheme", ["W4g64A16", "W4g32zA8", "W4g64A8", "WNF4A16", "Wfp8A16", "W3g64A16", "W2g32zA16"])
def test_few_bits_are_the_float_linear_of_the_rounded_weight(scheme: str) -> None:
    layer, x = nn.Linear(130, 40), torch.randn(9, 130)
    quantized: Any = modules.quantize(layer, scheme)
    expected = nn.functional.linear(x, quantized.weight.dequantize(), layer.bias)
    with torch.inference_mode():
        assert error(expected, quantized(x)) < (1e-5 if "A16" in scheme else 0.02)


def test_float_inputs_of_any_type_and_without_bias() -> None:
    layer = nn.Linear(64, 16, bias=False)
    quantized = modules.quantize(layer, "W8A16")
    x = torch.randn(4, 64)
    assert quantized(x.bfloat16()).dtype == torch.bfloat16
    assert quantized(x[:, ::1].T.contiguous().T).shape == (4, 16)  # rows that do not lie together
    assert quantized(x[:0]).shape == (0, 16)


def test_transformers_conv1d() -> None:
    from transformers.pytorch_utils import Conv1D

    compare(Conv1D(24, 40), "W8A8", torch.randn(3, 40))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer,shape", [
    (nn.Conv2d(3, 8, 3), (2, 3, 9, 11)), (nn.Conv2d(8, 20, (3, 5), stride=2, padding=(1, 2), dilation=(1, 2)), (3, 8, 17, 19)),
    (nn.Conv2d(16, 12, 3, groups=4, bias=False), (2, 16, 7, 7)), (nn.Conv2d(32, 16, 1), (2, 32, 5, 6)),
    (nn.Conv2d(4, 8, 4, padding="same", padding_mode="reflect"), (4, 9, 9)),
    (nn.Conv1d(20, 9, 5, padding="same", dilation=2, padding_mode="circular"), (4, 20, 33)),
    (nn.Conv1d(16, 8, 3, stride=2, padding=1), (16, 30))], ids=str)
def test_convolution(layer: nn.Module, shape: tuple[int, ...], scheme: str) -> None:
    compare(layer, scheme, torch.randn(shape))


def test_depthwise_convolutions_stay_and_say_why() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3))
    quantized = modules.quantize(net, "W8A8")
    assert list(modules.report(quantized).layers) == ["1"] and "too few" in modules.report(quantized).kept["0"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent(cell: type[nn.Module], scheme: str) -> None:
    layer: Any = cell(20, 33, num_layers=2, bidirectional=True, batch_first=True)
    x = torch.randn(5, 7, 20)
    quantized = compare(layer, scheme, x)
    assert error(layer(x[0])[0], quantized(x[0])[0]) < 0.02  # one sequence without a batch
    first = torch.rand(4, 5, 33) - 0.5
    state = (first, first) if cell is nn.LSTM else first
    (one, last), (other, mine) = layer(x, state), quantized(x, state)
    assert error(one, other) < 0.02
    for a, b in zip(last if cell is nn.LSTM else [last], mine if cell is nn.LSTM else [mine]):
        assert error(a, b) < 0.02


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_packed_sequences(cell: type[nn.Module]) -> None:
    layer: Any = cell(20, 24, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(9, 4, 20), [3, 9, 1, 5], enforce_sorted=False)
    quantized = modules.quantize(layer, "W8A8")
    (one, last), (other, mine) = layer(packed), quantized(packed)
    assert error(one.data, other.data) < 0.02 and torch.equal(one.batch_sizes, other.batch_sizes)
    for a, b in zip(last if cell is nn.LSTM else [last], mine if cell is nn.LSTM else [mine]):
        assert error(a, b) < 0.02


def test_relu_cells_and_large_batches_on_several_threads() -> None:
    compare(nn.RNN(20, 16, nonlinearity="relu"), "W8A8ts", torch.randn(6, 3, 20))
    layer = nn.LSTM(64, 128)
    x = torch.randn(5, 64, 64)
    quantized = modules.quantize(layer, "W8A8")
    whole = quantized(x)[0]
    assert torch.equal(quantized(x[:, :1])[0], whole[:, :1])  # company changes no bit


def test_embeddings_and_bags() -> None:
    table = nn.Embedding(50, 24, padding_idx=3)
    ids = torch.randint(0, 50, (6, 5))
    compare(table, "W8A8", ids)
    quantized: Any = modules.quantize(table, "W4g32A16")
    assert quantized.weight.meta.spec.bits == 8  # four bits only where the plan names the table
    named: Any = modules.quantize(nn.Sequential(table), "W8A16; 0.weight=W4g32A16")
    assert named[0].weight.meta.spec.bits == 4
    for mode in ("sum", "mean", "max"):
        bag = nn.EmbeddingBag(50, 24, mode=mode, padding_idx=3)
        compare(bag, "W8A8", ids)
        compare(bag, "W8A8", ids.reshape(-1), torch.tensor([0, 4, 4, 19]))
    weighted = nn.EmbeddingBag(50, 24, mode="sum")
    compare(weighted, "W8A8", ids, None, torch.rand(6, 5))
    with pytest.raises(IndexError, match="no row 50"):
        quantized(torch.tensor([50]))


def test_bias_correction_removes_the_mean_error() -> None:
    layer = nn.Linear(200, 30)
    x = torch.randn(500, 200) + 2  # far from zero mean: rounding then moves the mean output
    plain = modules.quantize(layer, "W3g100A16")
    fixed = modules.quantize(layer, "W3g100A16", data=[x[:250], x[250:]], bias_correction=True)
    with torch.inference_mode():
        before, after = (plain(x) - layer(x)).mean(0).norm(), (fixed(x) - layer(x)).mean(0).norm()
    assert after < 1e-3 * before


def test_smoothing_helps_static_inputs_with_loud_channels() -> None:
    x = torch.randn(300, 128) * torch.exp(1.5 * torch.randn(128))
    layer = nn.Linear(128, 64)
    errors = []
    for smoothing in (0.0, 0.5):
        quantized = modules.quantize(layer, "W8A8tsz", data=[x], smoothing=smoothing)
        with torch.inference_mode():
            errors.append(error(layer(x), quantized(x)))
    assert errors[1] < 0.7 * errors[0]


def test_calibrated_methods_of_octavo_quantize() -> None:
    net = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(400, 96) @ torch.randn(96, 96)
    losses = []
    for method in ("rtn", "gptq"):
        quantized = octavo.quantize(net, "W3g32A16", data=[x], method=method)
        with torch.inference_mode():
            losses.append(error(net(x), quantized(x)))
    assert losses[1] < losses[0]


def test_plans_copies_and_what_is_left_alone() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.MultiheadAttention(32, 4))
    quantized = octavo.quantize(net, "W8A8; 1.weight=keep")
    report = modules.report(quantized)
    assert list(report.layers) == ["0"] and report.kept["1"] == "the plan keeps it" and isinstance(net[0], nn.Linear)
    x = torch.randn(3, 32)
    for twin in (copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        assert torch.equal(twin[0](x), quantized[0](x))
    same = modules.quantize(net, "W8A8; 1.weight=keep", in_place=True)
    assert same is net and torch.equal(net[0](x), quantized[0](x))
    shared = nn.Linear(32, 32)
    tied = modules.quantize(nn.Sequential(shared, nn.ReLU(), shared), "W8A8")
    assert tied[0] is tied[2]  # type: ignore[index]


def test_torch_transformers_run_without_their_fast_path() -> None:
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 32)
    quantized = modules.quantize(net, "W8A8")
    with torch.inference_mode():
        assert error(net(x), quantized(x)) < 0.02


def test_errors_say_what_to_do() -> None:
    layer = nn.Linear(32, 8)
    with pytest.raises(UsageError, match="data"):
        modules.quantize(layer, "W8A8ts")
    with pytest.raises(UsageError, match="nothing to quantize"):
        modules.quantize(nn.ReLU(), "W8A8")
    with pytest.raises(UsageError, match="is empty"):
        modules.quantize(layer, "W8A8ts", data=[])
    with pytest.raises(SchemeError, match="fp8"):
        modules.quantize(layer, "W8Afp8")
    with pytest.raises(SchemeError, match="per tensor"):
        modules.quantize(layer, "W8A8t")
    with pytest.raises(UsageError, match="not quantized by Octavo"):
        modules.report(layer)
