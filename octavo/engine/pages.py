"""Which sequence holds which pages of the key-value cache, and which free pages still hold a prefix that can be reused.

A full page is named by a digest that covers every token from the start of the sequence to its own last one, so two pages with one
name hold the same keys and values (a row's results never depend on what else is in a batch). A page is in one of four states:

    fresh    never used, costs no memory yet
    blank    used before, its content is worthless
    cached   free, but its name is known: the next prompt that begins the same takes it
    held     by one or more sequences (reference count)

Prompts rarely part at the end of a page. Where the whole pages end, `alike` knows the page that followed them last: what it holds of the first tokens
that both have in common can be copied instead of computed.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from hashlib import blake2b

from ..cache import PAGE


def usually_cached(pages: int) -> int:
    """Of so many pages, how many free ones are kept for reuse at most while untouched ones are left, where nobody says otherwise."""
    return pages // 4


class PagePool:
    """Reference-counted page numbers 0 .. pages-1. Engine thread only."""

    def __init__(self, pages: int, *, reuse: bool = True, most_cached: int | None = None, salt: str = "") -> None:
        self.pages, self.reuse = pages, reuse
        self.most_cached = usually_cached(pages) if most_cached is None else most_cached
        self._root = blake2b(salt.encode(), digest_size=16).digest()
        self._refs = [0] * pages
        self._fresh = pages                       # pages below this number were never used
        self._blank: list[int] = []
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._follows: dict[int, tuple[bytes, list[int]]] = {}  # named page -> the name before it, and its own tokens
        self._newest: dict[bytes, int] = {}                     # name -> the page that was last named after it

    @property
    def free(self) -> int:
        """Pages that `take` can give, cached ones included."""
        return self._fresh + len(self._blank) + len(self._cached)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.pages - self.free

    def names(self, tokens: list[int], known: list[bytes], blocks: int) -> None:
        """Extend `known` to the names of the first `blocks` full pages of `tokens`."""
        while len(known) < blocks:
            start = len(known) * PAGE
            digest = blake2b(known[-1] if known else self._root, digest_size=16)
            digest.update(array("i", tokens[start : start + PAGE]))
            known.append(digest.digest())

    def find(self, names: list[bytes]) -> list[int]:
        """Pages of the longest known prefix of `names`. The caller must `hold` them before it takes others."""
        found: list[int] = []
        for name in names if self.reuse else ():
            page = self._page_of.get(name)
            if page is None:
                break
            found.append(page)
        return found

    def alike(self, before: bytes | None, tokens: list[int]) -> tuple[int, int]:
        """A named page that follows the one named `before` (None: begins a text), and how many of `tokens` it begins with. The caller must
        `hold` the page until its content is copied."""
        page = self._newest.get(before or self._root, -1) if self.reuse else -1
        if page < 0:
            return -1, 0
        known = self._follows[page][1]
        return page, next((i for i, (a, b) in enumerate(zip(known, tokens, strict=False)) if a != b), min(len(known), len(tokens)))

    def hold(self, pages: list[int]) -> None:
        """One more holder for each page."""
        for page in pages:
            if not self._refs[page]:
                del self._cached[page]
            self._refs[page] += 1

    def take(self, count: int) -> list[int] | None:
        """`count` pages with one holder each and no content, or None (and nothing taken) when there are too few."""
        if count > self.free:
            return None
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._blank:
            page = self._blank.pop()
        elif self._fresh and (len(self._cached) < max(self.most_cached, 1)):
            self._fresh -= 1
            page = self._fresh
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._unname(page)
        else:
            self._fresh -= 1
            page = self._fresh
        self._refs[page] = 1
        return page

    def release(self, pages: list[int]) -> None:
        """One holder less for each page of a sequence. The end of a prefix is given up before its beginning."""
        for page in reversed(pages):
            self._refs[page] -= 1
            assert self._refs[page] >= 0, f"page {page} was released more often than held"
            if self._refs[page]:
                continue
            if page in self._name_of:
                self._cached[page] = None
            else:
                self._blank.append(page)

    def publish(self, page: int, name: bytes, before: bytes | None, tokens: list[int]) -> None:
        """A held page is now full and computed: `tokens`, after the page named `before`. A second page with the same content stays private to its
        holder."""
        if self.reuse and name not in self._page_of and page not in self._name_of:
            self._page_of[name] = page
            self._name_of[page] = name
            self._follows[page] = (before or self._root, tokens)
            self._newest[before or self._root] = page

    def forget(self, pages: list[int]) -> None:
        """Never reuse these (held) pages: their content is in doubt."""
        for page in pages:
            self._unname(page)

    def _unname(self, page: int) -> None:
        name = self._name_of.pop(page, None)
        if name is not None:
            del self._page_of[name]
            before, _ = self._follows.pop(page)
            if self._newest.get(before) == page:
                del self._newest[before]

    def check(self, holders: list[list[int]]) -> None:
        """Assert the invariants, given the pages of every holder. For tests."""
        counts = [0] * self.pages
        for pages in holders:
            for page in pages:
                counts[page] += 1
        assert counts == self._refs, "reference counts do not match the holders"
        fresh, blank = set(range(self._fresh)), set(self._blank)
        cached, held = set(self._cached), {p for p, n in enumerate(counts) if n}
        assert len(blank) == len(self._blank), "a page is twice in the free list"
        assert len(fresh) + len(blank) + len(cached) + len(held) == self.pages, "a page leaked"
        assert fresh | blank | cached | held == set(range(self.pages)), "a page is in no state or in two"
        assert all(self._page_of[name] == page for page, name in self._name_of.items()) and len(self._page_of) == len(self._name_of)
        assert set(self._follows) == set(self._name_of) and set(self._newest.values()) <= set(self._name_of)
        assert cached <= set(self._name_of) and not (fresh | blank) & set(self._name_of)
