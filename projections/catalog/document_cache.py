"""The parts of documents that a fold looks at: read from the table when they are first needed, kept while they are in use.

What a row has not been written for yet is kept whatever comes: the table could not say it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from urllib.parse import quote

from projections.catalog.document import Document
from projections.catalog.parts import HEAD, Parts, join

PARTS_MAX = 50_000
"""Parts that are kept: some 100 MB; more only while they are not written."""
QUESTION_CHARS_MAX = 20_000
"""Of keys and names in one question, which travels in a URL; a server takes 64 KiB of that, and escapes may double it."""
NAME_CHARS_MAX = 1_000
"""Of a key, or of a part's name: an order of magnitude beyond what any process of ours writes."""
Load = Callable[[Sequence[str], Sequence[str] | None], Mapping[str, Parts]]
"""(keys, names of parts or None for all) → the newest parts of each key that the table has, in the order of their last change."""


class DocumentCache:
    """Of one partition. One thread folds; another may `release` what it has written."""

    def __init__(self, topic: str, load: Load, parts_max: int = PARTS_MAX) -> None:
        self._topic, self._load, self._parts_max = topic, load, parts_max
        self._known: OrderedDict[str, dict[str, Document | None]] = OrderedDict()
        """Key → its parts; None: there is no such part."""
        self._count = 0
        self._whole: set[str] = set()
        """Keys of which every part is known."""
        self._changed: list[str] = []
        self._unwritten: Counter[str] = Counter()
        self._guard = threading.Lock()

    def fetch(self, wanted: Mapping[str, Iterable[str] | None]) -> None:
        """Makes the head and these parts of each key known (None: all of it), in as few questions as there may be."""
        self._forget_oldest()
        some: dict[str, set[str]] = {}
        whole: list[str] = []
        for key, names in wanted.items():
            if key in self._known:
                self._known.move_to_end(key)
            if key in self._whole:
                continue
            if names is None:
                whole.append(key)
            else:
                known = self._known.get(key, {})
                if missing := {name for name in (HEAD, *names) if name not in known}:
                    some[key] = missing
        for page in _pages(dict.fromkeys(whole, (HEAD,))):
            loaded = self._load(list(page), None)
            for key in page:
                self._learn(key, {HEAD: None, **loaded.get(key, {})} | self._known.get(key, {}))
            self._whole.update(page)
        for page in _pages(some):
            loaded = self._load(list(page), sorted({name for names in page.values() for name in names}))
            for key, names in page.items():
                found = loaded.get(key, {})
                self._learn(key, {name: found.get(name) for name in names})

    def document(self, key: str, names: Iterable[str] | None = None) -> Document:
        """The document of a key with only these parts, or all of it."""
        self.fetch({key: names})
        known = self._known[key]
        wanted = known if names is None else (HEAD, *names)
        return join(self._topic, {name: part for name in wanted if (part := known.get(name)) is not None})

    def change(self, key: str, changed: Mapping[str, Document | None]) -> None:
        """After a fact; `fetch` or `document` came before."""
        if not changed:
            return
        known = self._known[key]
        for name in changed:  # last in the order of a collection: of gateways, those that reported last are kept
            if name in known:
                del known[name]
                self._count -= 1
        self._learn(key, changed)
        self._changed.append(key)
        with self._guard:
            self._unwritten[key] += 1

    def take_changed(self) -> list[str]:
        """Keys changed since the last time, once for each change: `release` them when their rows are written."""
        changed, self._changed = self._changed, []
        return changed

    def release(self, keys: Iterable[str]) -> None:
        with self._guard:
            self._unwritten.subtract(keys)
            self._unwritten += Counter()  # drops what is written

    def _learn(self, key: str, parts: Mapping[str, Document | None]) -> None:
        known = self._known.setdefault(key, {})
        self._count -= len(known)
        known |= parts
        self._count += len(known)

    def _forget_oldest(self) -> None:
        """Down to half of what may be kept, so that it is seldom done."""
        if self._count <= self._parts_max:
            return
        with self._guard:
            pinned = set(self._unwritten)
        for key in list(self._known):
            if self._count <= self._parts_max // 2:
                return
            if key not in pinned:
                self._count -= len(self._known.pop(key))
                self._whole.discard(key)


def _pages(wanted: Mapping[str, Iterable[str]]) -> Generator[dict[str, list[str]]]:
    """Key → names, in pieces that one question holds."""
    page: dict[str, list[str]] = {}
    size = 0
    for key, names in wanted.items():
        for name in names:
            own = len(quote(name)) + (0 if key in page else len(quote(key)))
            if page and size + own > QUESTION_CHARS_MAX:
                yield page
                page, size, own = {}, 0, len(quote(name)) + len(quote(key))
            page.setdefault(key, []).append(name)
            size += own
    if page:
        yield page
