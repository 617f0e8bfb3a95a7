"""An LSTM that reads a noisy sequence and says how many times it crossed zero, trained here, then in 8 bits: accuracy before and after.

    python examples/lstm_sequences.py
"""

from __future__ import annotations

import torch
from torch import nn

import octavo

LENGTH, CLASSES = 24, 4


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 48, batch_first=True)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def sequences(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(x [count, LENGTH, 1], how often each wave changes its sign, at most CLASSES - 1): waves of some frequency and phase, with noise."""
    random = torch.Generator().manual_seed(seed)
    turns = torch.randint(0, CLASSES, (count,), generator=random)
    time = torch.linspace(0, 1, LENGTH)
    start = torch.rand(count, 1, generator=random) * 0.5 + 0.25
    wave = torch.sin(torch.pi * (turns[:, None] * time + start))  # each half turn crosses zero once
    sign = torch.randint(0, 2, (count, 1), generator=random) * 2 - 1
    return (sign * wave + 0.5 * torch.randn(count, LENGTH, generator=random)).unsqueeze(-1), turns


def train(steps: int = 300) -> Counter:
    torch.manual_seed(0)
    model = Counter()
    x, y = sequences(4096, 0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        rows = torch.arange(step * 128, step * 128 + 128) % len(x)
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    x, y = sequences(4000, 1)
    return float((model(x).argmax(1) == y).float().mean())


def main() -> dict[str, float]:
    model = train()
    found = {"float": accuracy(model)}
    calibration, _ = sequences(256, 2)
    for scheme in ("W8A8", "W8A8tsz", "W4g32A16"):
        found[scheme] = accuracy(octavo.quantize(model, scheme, data=[calibration]))
    for name, value in found.items():
        print(f"{name:9} {100 * value:.2f}%")
    return found


if __name__ == "__main__":
    main()
