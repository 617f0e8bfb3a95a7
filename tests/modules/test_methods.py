"""Calibrated methods on every kind of layer: each matrix is rounded by what it meets, and what meets nothing is rounded without, with a note."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import octavo
from octavo import modules
from octavo.errors import SchemeError, UnknownNameError
from octavo.modules._kind import Given
from octavo.modules._recurrent_rows import names, rows_met


class Everything(nn.Module):
    """A layer of every kind, one of them out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.bag = nn.Embedding(40, 32), nn.EmbeddingBag(40, 32)
        self.line, self.grouped = nn.Conv1d(32, 32, 3, padding=1), nn.Conv1d(32, 64, 3, padding=1, groups=2)
        self.picture, self.thin = nn.Conv2d(1, 8, 5), nn.Conv2d(8, 8, 3, groups=8)
        self.lstm = nn.LSTM(64, 32, num_layers=2, bidirectional=True, batch_first=True)
        self.gru, self.rnn = nn.GRU(64, 32, batch_first=True), nn.RNN(32, 32, nonlinearity="relu", batch_first=True)
        self.out, self.unused, self.unused_cell = nn.Linear(32, 8), nn.Linear(32, 32), nn.GRU(32, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids) + self.bag(ids).unsqueeze(1)
        x = self.grouped(torch.relu(self.line(x.transpose(1, 2)))).transpose(1, 2)
        seen = self.thin(self.picture(x.unsqueeze(1))).mean((2, 3))
        x = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        return self.out(x[:, -1]) + seen


@pytest.fixture
def ids() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 40, (24, 12))


@pytest.mark.parametrize(("method", "scheme", "options"), [
    ("gptq", "W4g32A16", {}), ("gptq", "W8A8ts", {}), ("autoround", "W4g32A16", {}), ("hqq", "W4g32zA16", {}),
    ("rtn", "W4g32A16", {"importance": "mean_square"})])
def test_every_kind_of_layer(method: str, scheme: str, options: dict[str, str], ids: torch.Tensor) -> None:
    net = Everything().eval()
    quantized: Any = octavo.quantize(net, scheme, data=[ids[:16], ids[16:]], method=method, options=options)
    report = modules.report(quantized)
    assert set(report.layers) == {"words", "bag", "line", "grouped", "picture", "lstm", "gru", "rnn", "out", "unused", "unused_cell"}
    assert set(report.kept) == {"thin"}
    with torch.inference_mode():
        one, other = net(ids), quantized(ids)
    assert float((one - other).norm() / one.norm()) < 0.15
    notes = str(report)
    reached = [name for name in report.layers if name not in ("words", "bag", "unused", "unused_cell")]
    if method == "hqq":
        assert not report.notes
    else:
        for name, why in (("words", "looked up one by one"), ("bag", "looked up"), ("unused", "never reached"), ("unused_cell", "never reached")):
            assert f"note: {name} is rounded without calibration: " in notes and any(note.startswith(f"{name} ") and why in note for note in report.notes)
        assert not any(note.startswith(f"{name} is rounded without") for note in report.notes for name in reached)
    assert ("learns over whole layers" in notes) == (method == "autoround")


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_gptq_of_recurrent_layers_loses_less(cell: type[nn.Module]) -> None:
    """At 3 bits, over two layers in both directions: the matrices of states and of the upper layer count, too."""
    torch.manual_seed(0)
    layer: Any = cell(32, 32, num_layers=2, bidirectional=True)
    x = (torch.randn(40, 16, 32).cumsum(0) / 4) @ torch.randn(32, 32) / 4
    losses = []
    for method in ("rtn", "gptq"):
        quantized: Any = octavo.quantize(layer, "W3g32A16", data=[x], method=method)
        assert not modules.report(quantized).notes
        with torch.inference_mode():
            losses.append(float((layer(x)[0] - quantized(x)[0]).norm()))
    assert losses[1] < 0.9 * losses[0]


def by_hand(rnn: Any, x: list[torch.Tensor], first: Any) -> dict[str, list[np.ndarray]]:
    """Step by step with torch's cells, one sequence after the other, in float64."""
    met: dict[str, list[np.ndarray]] = {name: [] for name in names(rnn)}
    lstm = isinstance(rnn, nn.LSTM)
    kind = nn.LSTMCell if lstm else nn.GRUCell
    for number, sequence in enumerate(x):
        steps = sequence.double()
        for layer in range(rnn.num_layers):
            outs = []
            for direction in range(2):
                end = f"_l{layer}" + "_reverse" * direction
                cell = kind(steps.shape[1], rnn.hidden_size).double()
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    setattr(cell, part, nn.Parameter(getattr(rnn, part + end).detach().double()))
                states = [s[2 * layer + direction, number].double()[None] for s in (first if lstm else (first,))]
                out: list[Any] = [None] * len(steps)
                for t in reversed(range(len(steps))) if direction else range(len(steps)):
                    met[f"weight_ih{end}"].append(steps[t].detach().numpy())
                    met[f"weight_hh{end}"].append(states[0][0].detach().numpy())
                    found = cell(steps[t][None], tuple(states) if lstm else states[0])
                    states = list(found) if lstm else [found]
                    out[t] = states[0][0]
                outs.append(torch.stack(out))
            steps = torch.cat(outs, dim=1)
    return met


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("packed", [False, True])
def test_what_recurrent_matrices_meet(cell: type[nn.Module], packed: bool) -> None:
    torch.manual_seed(1)
    rnn: Any = cell(5, 4, num_layers=2, bidirectional=True, batch_first=not packed)
    lengths = [3, 6, 4] if packed else [5, 5, 5]
    sequences = [torch.randn(length, 5) for length in lengths]
    state = torch.randn(4, 3, 4)
    first: Any = (state, torch.randn(4, 3, 4)) if cell is nn.LSTM else state
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=not packed)
    x: Any = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=False) if packed else padded
    with torch.inference_mode():
        found = rows_met(rnn, Given(x, (first,)))
    expected = by_hand(rnn, sequences, first)
    for name in names(rnn):
        mine, truth = found[name].double().numpy(), np.stack(expected[name])
        assert mine.T @ mine == pytest.approx(truth.T @ truth, abs=1e-4), name  # in whatever order


def test_padding_is_no_row() -> None:
    rnn = nn.GRU(5, 4, batch_first=True)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert {len(rows) for rows in rows_met(rnn, Given(torch.randn(2, 3, 5), (), mask)).values()} == {5}
    assert {len(rows) for rows in rows_met(rnn, Given(torch.randn(3, 5))).values()} == {3}, "a sequence without a batch"


def test_layers_that_get_nothing_to_see() -> None:
    """An expert that no token is sent to: called, with no rows."""

    class Sends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.near(x[:4]) + self.far(x[:0]).sum()

    for scheme in ("W4g32A16", "W8A8ts"):
        quantized = octavo.quantize(Sends(), scheme, data=[torch.randn(4, 32)], method="gptq", bias_correction=True)
        assert [note for note in modules.report(quantized).notes if "far is rounded without" in note]


def test_an_order_of_inputs_is_for_linears() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(200, 64) * torch.rand(64), nn.Linear(64, 32)
    quantized = octavo.quantize(net, "W4g32A16", data=[x], method="gptq", options={"groups": "dynamic"})
    with torch.inference_mode():
        assert float((net(x) - quantized(x)).norm() / net(x).norm()) < 0.1
    with pytest.raises(SchemeError, match="groups=static"):
        octavo.quantize(nn.GRU(32, 32), "W4g32A16", data=[torch.randn(9, 4, 32)], method="gptq", options={"groups": "dynamic"})


def test_transforms_are_no_methods() -> None:
    with pytest.raises(UnknownNameError, match="gptq"):
        octavo.quantize(nn.Linear(32, 32), "W4g32A16", data=[torch.randn(4, 32)], method="awq")
