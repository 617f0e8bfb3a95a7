"""The integer program and the front against trying everything."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from octavo.errors import UsageError
from octavo.quantize.search import Goal, Item, parse_size, program
from octavo.quantize.search.front import Mark, front, plot
from octavo.quantize.search.program import cheapest, smallest, total


def toy(seed: int, layers: int = 6, choices: int = 4) -> list[Item]:
    """Six layers of different size and sensitivity; costs fall about fourfold per bit, with noise that also makes some choices pointless."""
    rng = np.random.default_rng(seed)
    bits = np.array([2.25, 3.25, 4.25, 8.25, 6.25][:choices])
    return [Item(f"layer {i}", (n * bits / 8).astype(np.int64), 10 ** rng.uniform(-4, -1) * 4.0**-bits * rng.uniform(0.3, 3, choices))
            for i, n in enumerate(rng.integers(1_000, 50_000, layers))]


def everything(items: list[Item]) -> np.ndarray:
    """(bytes, cost) of all combinations."""
    found = [total(items, choice) for choice in itertools.product(*(range(len(item.bytes)) for item in items))]
    return np.array([(one.bytes, one.cost) for one in found])


@pytest.mark.parametrize("seed", range(3))
def test_program_equals_brute_force(seed: int) -> None:
    items = toy(seed)
    combinations = everything(items)
    sizes = combinations[:, 0]
    for limit in np.linspace(sizes.min(), sizes.max(), 7).astype(int):
        best = combinations[sizes <= limit, 1].min()
        found = cheapest(items, int(limit))
        assert found.bytes <= limit
        assert found.cost == pytest.approx(best, rel=1e-9)
        least = combinations[combinations[:, 1] <= best * (1 + 1e-9), 0].min()
        assert smallest(items, best * (1 + 1e-9)).bytes == least


def test_program_is_exact_where_brute_force_cannot_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """120 items: against the least cost for every number of bytes, one item after the other. With room for few states it says how far it may be off."""
    rng = np.random.default_rng(11)
    items = [Item(f"weight {i}", np.sort(rng.integers(1, 60, 6)), 10 ** rng.uniform(-4, -1) * 4.0 ** -np.sort(rng.uniform(2, 8, 6))) for i in range(120)]
    best = np.zeros(1)
    for item in items:
        after = np.full(len(best) + 60, np.inf)
        for size, cost in zip(item.bytes, item.cost, strict=True):
            after[size : size + len(best)] = np.minimum(after[size : size + len(best)], best + cost)
        best = after
    known = np.minimum.accumulate(best)
    for limit in np.linspace(sum(int(item.bytes.min()) for item in items), sum(int(item.bytes.max()) for item in items), 9).astype(int):
        found = cheapest(items, int(limit))
        assert found.cost == pytest.approx(known[limit], rel=1e-9)
        assert found.gap == 0
        assert smallest(items, found.cost * (1 + 1e-9)).bytes == np.flatnonzero(known <= found.cost * (1 + 1e-9))[0]
    monkeypatch.setattr(program, "MOST", 2)
    middle = int(sum(item.bytes.mean() for item in items)) * 3 // 4
    few = cheapest(items, middle)
    assert few.cost * (1 - few.gap) <= known[middle] * (1 + 1e-9) <= few.cost * (1 + 2e-9)
    assert few.gap < 0.05


def test_every_point_of_the_front_is_best_at_its_size() -> None:
    items = toy(7)
    combinations = everything(items)
    points = front(items)
    assert points[0].bytes == combinations[:, 0].min()
    assert points[-1].cost == pytest.approx(combinations[:, 1].min())
    for point in points:
        assert point.cost == pytest.approx(combinations[combinations[:, 0] <= point.bytes, 1].min())
    assert all(a.bytes < b.bytes and a.cost > b.cost for a, b in itertools.pairwise(points))


def test_one_choice_and_free_choices() -> None:
    items = [Item("fixed", np.array([10]), np.array([0.5])), Item("free", np.array([4, 8, 16]), np.array([0.0, 0.0, 0.0]))]
    assert cheapest(items, 14).choice == (0, 0)
    assert [one.bytes for one in front(items)] == [14]


def test_what_cannot_be_reached_is_refused() -> None:
    items = toy(1)
    with pytest.raises(UsageError, match="at least"):
        cheapest(items, 10)
    with pytest.raises(UsageError, match="more bits"):
        smallest(items, 1e-12)


def test_plot_is_one_svg_with_every_mark() -> None:
    items = toy(2)
    picture = ET.fromstring(plot(front(items), 1000, [Mark("uniform", "W4 <g64>", 0.05, 1e-5), Mark("measured", "measured", 0.06, 2e-5)], "a & b"))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"W4 <g64>", "measured", "a & b"} <= set(texts)


def test_goals() -> None:
    assert [parse_size(text) for text in ("80MB", "1.5 GB", "2MiB", "123", "7k")] == [80_000_000, 1_500_000_000, 2 << 20, 123, 7000]
    with pytest.raises(UsageError, match="eighty"):
        parse_size("eighty")
    assert Goal(kl=0.1, minimize="work").to_json() == {"kl": 0.1, "minimize": "work"}
    for wrong in ({"bits": 4.0, "minimize": "work"}, {"kl": 0.1, "minimize": "time"}):
        with pytest.raises(UsageError, match="--minimize"):
            Goal(**wrong)  # type: ignore[arg-type]
    for bits, kl in ((None, None), (4.0, 0.1), (-1.0, None), (None, float("nan"))):
        with pytest.raises(UsageError):
            Goal(bits=bits, kl=kl)
