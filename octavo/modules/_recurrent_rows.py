"""What the matrices of a recurrent layer meet: the outputs of the layer below, and its own states one step earlier."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ._kind import Given


def names(rnn: Any) -> list[str]:
    """Of its matrices [gates * hidden, k], in order."""
    ends = ("", "_reverse") if rnn.bidirectional else ("",)
    return [f"weight_{part}_l{layer}{end}" for layer in range(rnn.num_layers) for end in ends for part in ("ih", "hh")]


def rows_met(rnn: Any, given: Given) -> dict[str, torch.Tensor]:
    """{name of a matrix: the rows [rows, k] that it meets}, padding left out. Each layer runs by itself, in float, on what the one below gave."""
    steps, lengths, kept = _steps(rnn, given)
    first = given.rest[0] if given.rest else None
    states = () if first is None else tuple(first) if rnn.mode == "LSTM" else (first,)
    if not isinstance(given.x, PackedSequence) and given.x.dim() == 2:
        states = tuple(s.unsqueeze(1) for s in states)
    found: dict[str, torch.Tensor] = {}
    for layer in range(rnn.num_layers):
        parts: list[torch.Tensor] = []
        for direction in range(2 if rnn.bidirectional else 1):
            end = f"_l{layer}" + "_reverse" * direction
            place = len(parts) + layer * (2 if rnn.bidirectional else 1)
            out, before = _one(rnn, end, steps, lengths, [s[place] for s in states], bool(direction))
            found[f"weight_ih{end}"], found[f"weight_hh{end}"] = steps[kept], before[kept]
            parts.append(out)
        steps = torch.cat(parts, dim=2)
    return found


def _steps(rnn: Any, given: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(inputs [length, batch, k], the length of each sequence [batch], which inputs are no padding: bool [length, batch])."""
    x = given.x
    if isinstance(x, PackedSequence):
        steps, lengths = pad_packed_sequence(x)  # in the order in which they were before they were sorted, as are the states that come with them
        return steps, lengths, torch.arange(len(steps))[:, None] < lengths[None, :]
    batch_first = rnn.batch_first and x.dim() == 3
    steps = x.unsqueeze(1) if x.dim() == 2 else x.transpose(0, 1) if batch_first else x
    lengths = torch.full((steps.shape[1],), len(steps))  # the layer itself knows nothing of a mask: it runs over padding
    if given.fits and given.mask is not None:
        return steps, lengths, (given.mask.T if batch_first else given.mask).bool()
    return steps, lengths, torch.ones(steps.shape[:2], dtype=torch.bool)


def _one(rnn: Any, end: str, steps: torch.Tensor, lengths: torch.Tensor, states: list[torch.Tensor], backward: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(the state after each step, the state that each step began with), both [length, batch, hidden], of one direction of one layer."""
    more = {"nonlinearity": "relu" if rnn.mode == "RNN_RELU" else "tanh"} if rnn.mode.startswith("RNN") else {}
    one: Any = type(rnn)(steps.shape[2], rnn.hidden_size, bias=rnn.bias, **more)
    for part in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if rnn.bias else ())):
        setattr(one, f"{part}_l0", nn.Parameter(getattr(rnn, part + end).detach().float(), requires_grad=False))
    given = [s.detach().float()[None] for s in states]
    start = given[0] if given else torch.zeros(1, steps.shape[1], rnn.hidden_size)
    first = None if not given else (given[0], given[1]) if rnn.mode == "LSTM" else given[0]
    at = torch.arange(len(steps))[:, None]
    turn = torch.where(at < lengths, lengths - 1 - at, at)[:, :, None]  # backward: each sequence from its own last step

    def turned(x: torch.Tensor) -> torch.Tensor:
        return torch.gather(x, 0, turn.expand_as(x)) if backward else x

    out = one(turned(steps.float()), first)[0]
    return turned(out), turned(torch.cat([start, out[:-1]]))
