"""A small convolutional network on handwritten digits (scikit-learn's 1,797 real ones where it is installed), trained here, then in 8 bits.

    python examples/cnn_digits.py
"""

from __future__ import annotations

import torch
from torch import nn

import octavo


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(pictures [count, 1, 8, 8] from 0 to 1, labels), in a fixed random order. The UCI "Optical Recognition of Handwritten Digits" test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("this example reads scikit-learn's digits: pip install scikit-learn") from None
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 16, torch.tensor(data.target)[order]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 10))


def train(x: torch.Tensor, y: torch.Tensor, epochs: int = 15) -> nn.Sequential:
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def main() -> dict[str, float]:
    x, y = digits()
    known, rest = 1100, 1100 + 100  # trained on, calibrated on (not judged on), judged on
    model = train(x[:known], y[:known])
    found = {"float": accuracy(model, x[rest:], y[rest:])}
    for scheme in ("W8A8", "W8A8tsz", "W4g32A16"):
        quantized = octavo.quantize(model, scheme, data=[x[known:rest]])
        found[scheme] = accuracy(quantized, x[rest:], y[rest:])
    for name, value in found.items():
        print(f"{name:9} {100 * value:.2f}%")
    return found


if __name__ == "__main__":
    main()
