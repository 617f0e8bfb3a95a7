"""Search: sensitivities, the front, and the plan for a goal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...calibration.blocks import Weights
from ...errors import UsageError
from ...models import Decoder
from ...schemes import CacheSpec, Plan, Scheme, TensorSpec, cache_name
from ..method import DraftingRounder, Rounder
from .caches import Caches
from .candidates import Candidates, units
from .front import Mark, front, plot
from .goal import WORK, Goal
from .program import Item, Solution, cheapest, smallest, total
from .sensitivity import Sensitivities, Sensitivity

SEQUENCES, TOKENS = 32, 128  # of calibration text that sensitivities are measured on: many short ones, since each is one draw
DIGITS = 6                   # of a sensitivity that the program sees: beyond them they are rounding errors
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Search:
    """What was measured. `factor`: measured over predicted KL, of plans that have been tried (1.0: none). `caches`: where the key-value cache takes part;
    then a solution's last choices are its layers', and its bytes those of the context, too."""

    candidates: Candidates
    sensitivities: Mapping[str, Sensitivity]
    together: bool = False
    factor: float = 1.0
    caches: Caches | None = None

    @cached_property
    def units(self) -> list[tuple[str, ...]]:
        return units(list(self.candidates.wanted), self.together)

    @cached_property
    def items(self) -> list[Item]:
        return [*(self._item(unit) for unit in self.units), *(self.caches.items() if self.caches else ())]

    def _item(self, unit: tuple[str, ...]) -> Item:
        found, wanted = self.candidates, [self.candidates.wanted[name] for name in unit]
        if any(schemes != wanted[0] for schemes in wanted):
            raise UsageError(f"{' and '.join(unit)} have different candidates", where="--together")
        sizes = np.array([sum(found.bytes_of(name, scheme) for name in unit) for scheme in wanted[0]], np.int64)
        work = np.array([sum(found.work_of(name, scheme) for name in unit) for scheme in wanted[0]], np.int64)
        cost = sum(self.sensitivities[name].kl for name in unit)
        return Item("+".join(unit), sizes, np.array([float(f"{c:.{DIGITS}g}") for c in np.asarray(cost)]), work)

    @cached_property
    def front(self) -> list[Solution]:
        return front(self.items)

    def choose(self, goal: Goal) -> Solution:
        """The best choices for the goal. Raises UsageError where it cannot be reached."""
        if goal.kl is not None:
            return smallest(self.items, goal.kl / self.factor, work=goal.minimize == WORK)
        size = goal.size - self.candidates.fixed if goal.size is not None else int((goal.bits or 0) * self.candidates.numbers / 8)
        return cheapest(self.items, size)

    def uniform(self, scheme: Scheme, outer: Scheme | None = None) -> Solution | None:
        """`scheme` for every weight, `outer` for embedding and output layer; None where it is no candidate of one of them."""
        choice = []
        for unit in self.units:
            wished = outer if outer is not None and not unit[0].startswith("model.layers.") else scheme
            schemes = self.candidates.wanted[unit[0]]
            if wished not in schemes:
                return None
            choice.append(schemes.index(wished))
        return total(self.items, [*choice, *[0] * (len(self.items) - len(choice))])  # with a cache of 16 bits

    def schemes(self, solution: Solution) -> dict[str, Scheme]:
        """weight -> its scheme."""
        return {name: self.candidates.wanted[name][i] for unit, i in zip(self.units, solution.choice, strict=False) for name in unit}

    def cache(self, solution: Solution) -> TensorSpec | CacheSpec | None:
        """The key-value cache, where it takes part."""
        return None if self.caches is None else self.caches.spec(solution.choice[len(self.units) :])

    def cache_name(self, solution: Solution) -> str:
        """Of what `cache` gives; "" where the cache takes no part."""
        cache = self.cache(solution)
        return "" if cache is None else cache_name(cache)

    def cache_bytes(self, solution: Solution) -> int:
        """Of the key-value cache of a token, all layers; 0 where it takes no part."""
        return 0 if self.caches is None else self.caches.bytes_per_token(solution.choice[len(self.units) :])

    def plan(self, solution: Solution) -> Plan:
        """What most weights of the layers get is the default; everything that takes part and differs is an override by its whole name."""
        schemes = self.schemes(solution)
        sizes: Counter[Scheme] = Counter()
        for name, scheme in schemes.items():
            n, k = self.candidates.shapes[name]
            sizes[scheme] += n * k if name.startswith("model.layers.") else 0
        default = sizes.most_common(1)[0][0]
        inside = {name: scheme for name, scheme in schemes.items() if scheme != default or not name.startswith("model.layers.")}
        plan = Plan(default, tuple((name, scheme if scheme.weight.quantized else None) for name, scheme in inside.items()))
        cache = self.cache(solution)
        return plan if cache is None else plan.with_cache(cache)

    def size(self, solution: Solution) -> int:
        """Bytes of all tensors of the checkpoint, and of the context's key-value cache where that takes part."""
        return solution.bytes + self.candidates.fixed

    def bits(self, solution: Solution) -> float:
        """Per weight that takes part."""
        return 8 * self._weights(solution) / self.candidates.numbers

    def _weights(self, solution: Solution) -> int:
        """Bytes of the weights that take part."""
        return sum(int(item.bytes[i]) for item, i in zip(self.items[: len(self.units)], solution.choice, strict=False))

    def amount(self, solution: Solution, goal: Goal) -> int:
        """What a bound on KL makes small: bytes, or bit operations."""
        return sum(int((item.work if goal.minimize == WORK else item.bytes)[i]) for item, i in zip(self.items, solution.choice, strict=True))

    def work(self, solution: Solution) -> float:
        """Bits of inputs, mean over the bits of the weights that they meet: 16 where no input is rounded, 8 where all are."""
        done = sum(int(item.work[i]) for item, i in zip(self.items[: len(self.units)], solution.choice, strict=False))
        return done / (8 * self._weights(solution))

    def predicted(self, solution: Solution) -> float:
        """nats per token."""
        return solution.cost * self.factor

    def picture(self, title: str, chosen: Solution | None = None, measured: float | None = None) -> str:
        """SVG of the front with the uniform plans and the chosen one."""
        marks = []
        for scheme in self.candidates.schemes:
            if (one := self.uniform(scheme)) is not None:
                marks.append(Mark("uniform", str(scheme).removesuffix("A16C16"), self.size(one) / 1e6, self.predicted(one)))
        if chosen is not None:
            marks.append(Mark("chosen", "chosen", self.size(chosen) / 1e6, self.predicted(chosen)))
            if measured is not None:
                marks.append(Mark("measured", "measured", self.size(chosen) / 1e6, measured))
        scaled = [Solution(one.choice, one.bytes, self.predicted(one)) for one in self.front]
        return plot(scaled, self.candidates.fixed, marks, title)


def measure(model: Decoder, weights: Weights, ids: np.ndarray, candidates: Candidates, method: Rounder, *, threads: int, together: bool = False,
            seed: int = 0, on_progress: OnProgress | None = None) -> Search:
    """Sensitivities of all candidates on SEQUENCES pieces of TOKENS tokens, cut from `ids` [sequences, tokens]."""
    method = method.draft() if isinstance(method, DraftingRounder) else method
    with Sensitivities(model, weights, pieces(ids), candidates.wanted, method, threads, seed) as work:
        return Search(candidates, work.measure(on_progress), together)


def pieces(ids: np.ndarray, sequences: int = SEQUENCES, tokens: int = TOKENS) -> np.ndarray:
    """[at most `sequences`, at most `tokens`]: the beginnings of all sequences first, then what follows them; a BOS stands before none but the first."""
    length = min(tokens, ids.shape[1])
    cut: Sequence[np.ndarray] = [ids[:, a : a + length] for a in range(0, ids.shape[1] - length + 1, length)]
    return np.ascontiguousarray(np.concatenate(cut)[:sequences], np.int32)
