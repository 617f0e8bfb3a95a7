"""recurrent: nn.LSTM, nn.GRU and nn.RNN; any number of layers, both directions, packed sequences.

What it is: the inputs' matrix meets all steps at once, the state's matrix one step after the other in one native call, both on panels of codes; the cell
itself is float32.
When to choose it: always; both matrices are linears.
Limits: proj_size stays in float. With fixed inputs the state of LSTM and GRU has the scale 1/127, for it lies between -1 and 1 (a first state that does
not is clipped); that of a ReLU RNN has no bound and gets a scale each step.
Source: the equations in torch's documentation of these modules; csrc/immediate.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ...schemes import Scheme
from .._inputs import WHOLE_ROW, Inputs
from .._kind import Given, Wanted, vector, why_not_weight
from .._recurrent_rows import names, rows_met
from .._weight import Quantized, Weight, immediate, rows_of

CELLS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 2, "RNN_RELU": 3}


class QuantizedRecurrent(Quantized):
    """What nn.LSTM and its relatives take and give."""

    kind = "recurrent"

    def __init__(self, module: nn.Module, weights: dict[str, Weight], scheme: str) -> None:
        super().__init__()
        rnn: Any = module
        self.cell, self.scheme = rnn.mode, scheme
        self.input_size, self.hidden_size, self.num_layers = rnn.input_size, rnn.hidden_size, rnn.num_layers
        self.bidirectional, self.batch_first, self.has_bias = rnn.bidirectional, rnn.batch_first, rnn.bias
        for name, weight in weights.items():
            self.add_module(name, weight)
        if rnn.bias:
            for name in weights:
                self.register_parameter(name.replace("weight", "bias"), vector(getattr(rnn, name.replace("weight", "bias"))))

    def forward(self, x: torch.Tensor | PackedSequence, state: Any = None) -> tuple[torch.Tensor | PackedSequence, Any]:
        data: torch.Tensor = x.data if isinstance(x, PackedSequence) else x
        single = not isinstance(x, PackedSequence) and data.dim() == 2
        if isinstance(x, PackedSequence):
            sizes, order, back = x.batch_sizes.tolist(), x.sorted_indices, x.unsorted_indices
            steps = data
        else:
            whole = data.unsqueeze(1) if single else data.transpose(0, 1) if self.batch_first else data
            sizes, order, back = [whole.shape[1]] * whole.shape[0], None, None
            steps = whole.reshape(-1, self.input_size)
        most = sizes[0] if sizes else 0
        states = self._first(state, most, order, single)
        directions = 2 if self.bidirectional else 1
        values = rows_of(steps, self.input_size)
        for layer in range(self.num_layers):
            out = np.empty((len(values), directions * self.hidden_size), np.float32)
            for direction in range(directions):
                self._run(f"l{layer}" + "_reverse" * direction, values, sizes, bool(direction), [s[layer * directions + direction] for s in states], out,
                          direction * self.hidden_size)
            values = out
        last = [torch.from_numpy(s) for s in states]
        last = last if back is None else [s[:, back] for s in last]
        result = torch.from_numpy(values).to(data.dtype)
        last = [(s.squeeze(1) if single else s).to(data.dtype) for s in last]
        final: Any = (last[0], last[1]) if self.cell == "LSTM" else last[0]
        if isinstance(x, PackedSequence):
            return PackedSequence(result, x.batch_sizes, order, back), final
        shaped = result.reshape(len(sizes), most, -1)
        return (shaped.squeeze(1) if single else shaped.transpose(0, 1) if self.batch_first else shaped), final

    def _first(self, state: Any, batch: int, order: torch.Tensor | None, single: bool) -> list[np.ndarray]:
        """States [layers * directions, batch, hidden] as arrays of their own: the native call writes them."""
        shape = (self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)
        if state is None:
            return [np.zeros(shape, np.float32) for _ in range(2 if self.cell == "LSTM" else 1)]
        given = list(state) if self.cell == "LSTM" else [state]
        given = [g.unsqueeze(1) if single else g for g in given]
        given = given if order is None else [g[:, order] for g in given]
        return [np.array(g.detach().float().expand(shape).numpy(), np.float32, order="C") for g in given]

    def _run(self, suffix: str, values: np.ndarray, sizes: list[int], reverse: bool, state: list[np.ndarray], out: np.ndarray, column: int) -> None:
        inputs, memory = self.get_submodule(f"weight_ih_{suffix}"), self.get_submodule(f"weight_hh_{suffix}")
        assert isinstance(inputs, Weight) and isinstance(memory, Weight)
        bias = [self.get_parameter(f"bias_{part}_{suffix}") if self.has_bias else None for part in ("ih", "hh")]
        gates = np.empty((len(values), inputs.meta.n), np.float32)
        how = inputs.inputs
        immediate().linear(inputs.native, values, self.derived("ih" + suffix, bias[0], inputs), gates, how.group, how.fixed, how.zero_point, how.threshold)
        how = memory.inputs
        immediate().recurrent(CELLS[self.cell], memory.native, self.derived("hh" + suffix, bias[1], memory), gates, sizes, reverse, state[0],
                              state[1] if self.cell == "LSTM" else None, out, column, how.group, how.fixed, how.zero_point, how.threshold)

    def flatten_parameters(self) -> None:
        """Nothing to do: what callers of torch's recurrent layers call."""

    def extra_repr(self) -> str:
        return f"{self.cell} {self.input_size} > {self.hidden_size}, {self.num_layers} layers, {self.scheme}"


class RecurrentKind:
    name = "recurrent"

    def replaces(self, module: nn.Module) -> bool:
        return type(module) in (nn.LSTM, nn.GRU, nn.RNN)

    def why_not(self, module: nn.Module, scheme: Scheme) -> str | None:
        if module.proj_size:
            return "states with a projection (proj_size) are not supported"
        return why_not_weight(scheme.weight)

    def rows(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
        data = x.data if isinstance(x, PackedSequence) else x
        return data.reshape(-1, data.shape[-1])

    def met(self, module: nn.Module, given: Given) -> dict[str, torch.Tensor]:
        return rows_met(module, given)

    def build(self, module: nn.Module, wanted: Wanted) -> Quantized:
        rnn: Any = module
        bounded = Inputs(WHOLE_ROW, 1 / 127) if rnn.mode != "RNN_RELU" else Inputs(WHOLE_ROW)
        weights = {}
        for name in names(rnn):
            first = name in ("weight_ih_l0", "weight_ih_l0_reverse")
            how = wanted.inputs if first or not wanted.inputs.fixed else bounded  # states and the outputs of layers are bounded
            weights[name] = wanted.weight(getattr(rnn, name), name, how)
        return QuantizedRecurrent(rnn, weights, str(wanted.scheme))

    def blank(self, module: nn.Module, scheme: Scheme, weights: dict[str, Weight], held: frozenset[str]) -> Quantized:
        rnn: Any = module
        return QuantizedRecurrent(rnn, {name: weights[name] for name in names(rnn)}, str(scheme))


LAYER = RecurrentKind()
