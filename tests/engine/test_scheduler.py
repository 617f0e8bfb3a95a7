"""Invariants of pages and scheduling under random loads: nothing leaks, nothing is shared wrongly, nobody starves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.cache import PAGE
from octavo.engine import Request, Sampling
from octavo.engine.pages import PagePool
from octavo.engine.scheduler import Scheduler
from octavo.engine.sequence import Sequence


def sequence(tokens: list[int], *, limit: int = 10_000, echo: bool = False) -> Sequence:
    ticket: Any = SimpleNamespace(request=Request(tuple(tokens), Sampling(), echo_logprobs=echo))
    nothing: Any = None
    return Sequence(ticket=ticket, choice=0, tokens=list(tokens), prompt_length=len(tokens), limit=limit, sampler=nothing, output=nothing, submitted=0.0)


def keep(source: int, target: int) -> None:
    """Copies of pages, where a test has no content to copy."""


def run(scheduler: Scheduler, live: list[Sequence], *, check: Any = None) -> int:
    """Plan and pretend to compute until all are at their limit; the tokens drawn depend on the sequence's content. Number of steps."""
    steps = 0
    while live:
        prompts = [s for s in scheduler.running if s.remaining > 1]
        chunks = scheduler.plan()
        assert chunks, "sequences are left and none is computed"
        assert sum(c.count for c in chunks) <= max(scheduler.budget, PAGE + sum(c.count == 1 for c in chunks))
        assert len({id(c.sequence) for c in chunks}) == len(chunks)
        for chunk in chunks:
            s = chunk.sequence
            assert s in scheduler.running and 0 < chunk.count <= s.remaining
            assert len(s.pages) * PAGE >= s.computed + chunk.count
            assert len(set(s.pages)) == len(s.pages)
        computed = {id(c.sequence): c.count for c in chunks}
        assert all(id(s) in computed for s in scheduler.running if s.remaining == 1), "a sequence that decodes got no row"
        rows = scheduler.budget - sum(s.remaining == 1 for s in scheduler.running)
        for s in [s for s in prompts if s.pages][:1]:
            assert computed.get(id(s), 0) >= min(s.remaining, rows // 2), "the oldest prompt is held up"
        writers = [p for c in chunks for p in c.sequence.pages[c.sequence.computed // PAGE : -(-(c.sequence.computed + c.count) // PAGE)]]
        assert len(set(writers)) == len(writers), "two sequences write one page"
        scheduler.pool.check([s.pages for s in scheduler.running])
        for chunk in chunks:
            scheduler.advance(chunk)
            s = chunk.sequence
            if s.remaining == 0:
                s.prefilled = True
                s.tokens.append(sum(s.tokens) % 97)
                if len(s.tokens) >= s.limit:
                    scheduler.remove(s)
                    live.remove(s)
        if check:
            check(chunks)
        steps += 1
        assert steps < 20_000, "no end in sight"
    scheduler.pool.check([])
    return steps


loads = st.lists(st.tuples(st.integers(1, 150), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=14)


@given(loads, st.integers(7, 40), st.integers(1, 8), st.integers(8, 100), st.booleans(), st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_random_loads_end_and_leave_every_page_free(load: Any, pages: int, batch: int, budget: int, reuse: bool, most_cached: int) -> None:
    pool = PagePool(pages, reuse=reuse, most_cached=most_cached)
    scheduler = Scheduler(pool, max_batch=batch, max_batch_tokens=budget, copy=keep)
    live = [sequence([kind] * length, limit=min(length + answer, pages * PAGE)) for length, answer, kind in load]
    scheduler.waiting.extend(live)
    run(scheduler, live)
    assert pool.used == 0


@given(loads, st.integers(7, 20), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_cancellation_at_any_time_leaves_every_page_free(load: Any, pages: int, random: Any) -> None:
    scheduler = Scheduler(PagePool(pages), max_batch=4, max_batch_tokens=48, copy=keep)
    live = [sequence([kind] * length, limit=min(length + answer, pages * PAGE)) for length, answer, kind in load]
    scheduler.waiting.extend(live)

    def cancel_some(chunks: Any) -> None:
        if live and random.random() < 0.3:
            victim = random.choice(live)
            live.remove(victim)
            scheduler.remove(victim, doubtful=random.random() < 0.5)

    run(scheduler, live, check=cancel_some)


class Contents:
    """What each page holds, kept beside the pool: a page that is found must hold just the tokens it is found for."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[int, ...]] = {}


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=40), st.integers(3, 12), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_a_page_is_found_only_for_its_own_prefix(streams: Any, pages: int, random: Any) -> None:
    """Sequences of whole pages that are all 0 or all 1: many share a prefix, many do not."""
    pool, held, content = PagePool(pages, most_cached=random.randint(0, pages)), [], Contents()
    for bits in streams:
        tokens = [b for b in bits for _ in range(PAGE)]
        names: list[bytes] = []
        pool.names(tokens, names, len(bits))
        found = pool.find(names)
        for place, page in enumerate(found):
            assert content.of[page] == tuple(bits[: place + 1])
        pool.hold(found)
        taken = pool.take(len(bits) - len(found))
        if taken is None:
            pool.release(found)
        else:
            mine = found + taken
            for place in range(len(found), len(bits)):
                content.of[mine[place]] = tuple(bits[: place + 1])
                before = names[place - 1] if place else None
                page, common = pool.alike(before, tokens[place * PAGE : (place + 1) * PAGE])
                assert page < 0 or (content.of[page][:-1] == tuple(bits[:place]) and common == PAGE * (content.of[page][-1] == bits[place]))
                pool.publish(mine[place], names[place], before, tokens[place * PAGE : (place + 1) * PAGE])
            held.append(mine)
        while held and (random.random() < 0.5 or len(held) > 2):
            pool.release(held.pop(random.randrange(len(held))))
        pool.check(held)


def test_first_come_first_served_and_no_starvation() -> None:
    """200 sequences arrive while others run: they are admitted in order, and in every step each that decodes gets its row and the oldest
    prompt half of what is left."""
    scheduler = Scheduler(PagePool(200), max_batch=8, max_batch_tokens=64, copy=keep)
    live = [sequence([i] * (5 + 37 * i % 150), limit=(5 + 37 * i % 150) + 10) for i in range(200)]
    scheduler.waiting.extend(live)
    order: list[Sequence] = []

    def watch(chunks: Any) -> None:
        assert scheduler.preemptions == 0
        order.extend(s for s in scheduler.running if s not in order)

    everyone = list(live)
    run(scheduler, live, check=watch)
    assert order == [s for s in everyone if s in order] and len(order) > 150


def test_a_long_prompt_does_not_hold_up_a_short_one() -> None:
    scheduler = Scheduler(PagePool(200), max_batch=8, max_batch_tokens=64, copy=keep)
    long, short, decoding = sequence([1] * 3000, limit=3001), sequence([2] * 30, limit=33), sequence([3] * 4, limit=50)
    scheduler.waiting.extend([decoding, long, short])
    first: dict[int, int] = {}
    live, step = [long, short, decoding], 0

    def watch(chunks: Any) -> None:
        nonlocal step
        step += 1
        for s in (short, decoding):
            if s.generated and id(s) not in first:
                first[id(s)] = step

    run(scheduler, live, check=watch)
    assert first == {id(decoding): 1, id(short): 1}
    assert step < 60


def test_the_youngest_gives_way_and_comes_back_first() -> None:
    scheduler = Scheduler(PagePool(6), max_batch=4, max_batch_tokens=64, copy=keep)
    a, b, c = sequence([1] * 31, limit=160), sequence([2] * 31, limit=160), sequence([3] * 31, limit=40)
    scheduler.waiting.extend([a, b, c])
    live = [a, b, c]
    seen: list[str] = []

    def watch(chunks: Any) -> None:
        names = {id(a): "a", id(b): "b", id(c): "c"}
        state = "".join(names[id(s)] for s in scheduler.running)
        if not seen or seen[-1] != state:
            seen.append(state)

    run(scheduler, live, check=watch)
    assert scheduler.preemptions >= 1
    assert all(s.startswith("a") for s in seen[: seen.index("a") + 1])   # the oldest is never set back


def test_fresh_pages_are_spared_while_enough_are_cached() -> None:
    """An idle cache must not grow into the whole pool: with most_cached = 2, 20 different prompts touch few pages."""
    pool = PagePool(100, most_cached=2)
    for i in range(20):
        names: list[bytes] = []
        pool.names([i] * PAGE, names, 1)
        (page,) = pool.take(1) or [0]
        pool.publish(page, names[0], None, [i] * PAGE)
        pool.release([page])
    assert pool._fresh >= 100 - 3 and pool.cached <= 3


def test_what_prompts_have_in_common_is_computed_once() -> None:
    """Eight prompts that arrive at once and share 70 tokens: the seven wait for the pages of the first, and copy what they share of its third."""
    copies: list[tuple[int, int]] = []
    scheduler = Scheduler(PagePool(100), max_batch=16, max_batch_tokens=256, copy=lambda source, target: copies.append((source, target)))
    shared = list(range(70))
    live = [sequence([*shared, *([100 + i] * 40)], limit=112) for i in range(8)]
    others = [sequence([200 + i] * 20, limit=22) for i in range(2)]
    scheduler.waiting.extend([*live, *others])
    first = live[0]
    rows: dict[int, int] = {}
    admitted: list[Sequence] = []

    def watch(chunks: Any) -> None:
        for chunk in chunks:
            rows[id(chunk.sequence)] = rows.get(id(chunk.sequence), 0) + chunk.count
        admitted.extend(s for s in scheduler.running if s not in admitted)

    everyone = [*live, *others]
    run(scheduler, live + others, check=watch)
    assert admitted[:3] == [first, *others]                    # who waits for pages holds up nobody else
    assert [rows[id(s)] for s in everyone] == [111] + [41] * 7 + [21] * 2
    assert len(copies) == 7 and len({source for source, _ in copies}) <= 7
    assert [s.cached_tokens for s in everyone] == [0] + [70] * 7 + [0] * 2


def test_a_copied_page_is_not_the_one_that_is_taken() -> None:
    """The last free page is the one that could be copied: it is taken, and its content computed again."""
    copies: list[tuple[int, int]] = []
    pool = PagePool(3)
    scheduler = Scheduler(pool, max_batch=4, max_batch_tokens=256, copy=lambda source, target: copies.append((source, target)))
    for salt in (1, 2, 3):
        live = [sequence([*([0] * 40), *([salt] * 50)], limit=91)]
        scheduler.waiting.extend(live)
        run(scheduler, live)
    assert all(source != target for source, target in copies)
