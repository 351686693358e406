"""What can be asked of a store without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from memstore.catalog import memories, neurons, traces
from memstore.catalog.filters import asks_neurons, compile_filter
from memstore.core.expression import check_ref
from memstore.core.traces import concatenate, empty
from memstore.errors import InvalidQuery, MemoryNotFound, brief
from memstore.hits import Hits
from memstore.neuron_view import Neurons
from memstore.opening import OpenStore
from memstore.options import By, Options, Scoring
from memstore.rows import check_id, check_name, check_text
from memstore.types import Explanation, Float32, Memory, Trace, Traces
from memstore.view import Query, Where

if TYPE_CHECKING:
    # Asked for now and then; a neuron query need not load them.
    from memstore.audit import Audit
    from memstore.audit import By as Grouping
    from memstore.lenses import Lenses
    from memstore.meaning import Difference, Meaning
    from memstore.novelty import Novelty

PAGE = 1_000


class Reader(OpenStore):
    """The reading half of ``MemoryStore``."""

    # --- memories --------------------------------------------------------------------------

    def get(self, id: int | None = None, *, key: str | None = None) -> Memory:
        """Return one memory by id or by key. Raises ``MemoryNotFound``."""
        if (id is None) == (key is None):
            raise InvalidQuery("give either an id or a key")
        wanted = check_name("key", key)
        found = check_id(id) if wanted is None else self._id_of_key(wanted)
        with self._open_database().read() as connection:
            rows = memories.by_ids(connection, [] if found is None else [found])
        if found not in rows:
            name = f"key {brief(key)}" if key is not None else f"id {id}"
            raise MemoryNotFound(f"no memory has {name}: `list` shows which there are")
        return rows[found]

    def iter(self, where: Where | None = None) -> Iterator[Memory]:
        """Yield memories by ascending id, a page at a time; holds no transaction between pages.

        What ``$holds`` asks of neurons is answered once, at the beginning.
        """
        self._open_database()
        if where is not None and asks_neurons(where):
            yield from self._iter_found(where)
            return
        condition = None if where is None else compile_filter(where, lambda _: ())
        last = 0
        while True:
            with self._open_database().read() as connection:
                page = memories.page(connection, last, PAGE, condition)
            yield from page
            if len(page) < PAGE:
                return
            last = page[-1].id

    def _iter_found(self, where: Where) -> Iterator[Memory]:
        with self._searcher.filtered(where) as (view, condition):
            ids = [] if condition is None else sorted(memories.ids(view.connection, condition))
        for start in range(0, len(ids), PAGE):
            with self._open_database().read() as connection:
                found = memories.by_ids(connection, ids[start : start + PAGE])
            yield from (found[memory_id] for memory_id in sorted(found))

    def __iter__(self) -> Iterator[Memory]:
        return self.iter()

    def count(self, where: Where | None = None) -> int:
        """Return how many memories there are, or how many pass a filter."""
        self._open_database()
        with self._searcher.filtered(where) as (view, condition):
            return memories.count(view.connection, condition)

    def __len__(self) -> int:
        return self.count()

    def trace(self, id: int) -> Trace:
        """Return the trace of one memory. Raises ``MemoryNotFound``."""
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
            found = traces.by_ids(connection, record.id, [check_id(id)], record.neurons)
        if not len(found):
            raise MemoryNotFound(f"no memory has id {id}: `list` shows which there are")
        return found[0]

    def traces(self, where: Where | None = None) -> Traces:
        """Return the traces of all memories, or of those that pass a filter, ids ascending."""
        self._open_database()
        with self._searcher.filtered(where) as (view, condition):
            connection, record = view.connection, view.encoder
            if condition is not None:
                ids = memories.ids(connection, condition)
                return traces.by_ids(connection, record.id, ids, record.neurons)
            pages = list(traces.changed_traces(connection, record.id, 0, record.neurons))
        return concatenate(pages) if pages else empty(record.neurons)

    def iter_vectors(self) -> Iterator[tuple[list[int], Float32]]:
        """Yield (ids, unit vectors) by the page, ids ascending: what an SAE is trained on.

        Holds no transaction between pages. Raises ``EncoderMismatch`` where the store moves to
        another encoder meanwhile.
        """
        with self._open_database().read() as connection:
            record = neurons.require_encoder(connection)
        last = 0
        while True:
            with self._open_database().read() as connection:
                neurons.require_still(connection, record)
                pages = traces.changed_vectors(connection, record.id, 0, record.dimension, last)
                page = next(pages, None)
            if page is None:
                return
            yield page
            last = page[0][-1]

    # --- queries ---------------------------------------------------------------------------

    def top(
        self,
        neuron: int | str,
        k: int = 10,
        *,
        where: Where | None = None,
        fetch: bool = True,
    ) -> Hits:
        """Return the k memories for which one neuron (number or label) fires strongest.

        Or that a lens of that name puts first. ``fetch`` as for ``composite``.
        """
        self._open_database()
        check_ref(neuron)
        reference = int(neuron) if isinstance(neuron, np.integer) else neuron
        return self._searcher.composite({reference: 1.0}, k, where, 0.0, None, None, fetch)

    def composite(
        self,
        expression: Query,
        k: int = 10,
        *,
        where: Where | None = None,
        min_score: float | None = 0.0,
        half_life: str | timedelta | None = None,
        by: Scoring | None = None,
        fetch: bool = True,
    ) -> Hits:
        """Return the k best of a neuron expression: ``N[15] - N[5]``, "+15 -5" or {15: 1, 5: -1}.

        Score: sum of weight x activation, 0 where a neuron is silent. Candidates: memories that
        pass ``where`` and every condition of the expression, in which a positively weighted neuron
        fires, and whose score is above ``min_score`` (None for no bound); without any positive
        term, all that pass. Exact: equal to brute force, ties by id.

        ``by="dense"`` asks vectors instead: the score is the cosine to the sum of the neurons'
        directions (``SAE.directions``), weighted; the k nearest as ``search`` finds them, of any
        score unless ``min_score`` is another number than 0. A lens alone goes by what it was made
        for, everything else by "trace".

        ``fetch=False`` reads no memory: ``ids`` and ``scores`` are there in half the time. Once a
        hit is looked at all are read, as their memories are by then (``MemoryNotFound`` where one
        was deleted). Where age or vectors decide, memories are read all the same.

        Raises ``InvalidExpression`` with the position, ``UnknownNeuron``, ``InvalidFilter``.
        """
        self._open_database()
        return self._searcher.composite(expression, k, where, min_score, half_life, by, fetch)

    def search(  # noqa: PLR0913 - the words of a search; all but text and k by name only
        self,
        text: str,
        k: int = 10,
        *,
        by: By = "dense",
        where: Where | None = None,
        steer: Query | None = None,
        half_life: str | timedelta | None = None,
        idf: bool | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> Hits:
        """Return the k memories nearest to a text.

        ``by``: "dense" (cosine of vectors), "trace" (affinity of traces; rare neurons count more,
        unless ``idf=False``), "words" (BM25 of any of the words) or "hybrid" (reciprocal rank
        fusion of the three; ``weights={"dense": 1, "words": 0.5}`` for a weighted sum instead).
        ``steer`` adds a neuron expression to the score; ``half_life`` ("90d") fades old memories.
        Exact, except that fusion reads each side's first max(100, k).
        """
        self._open_database()
        options = Options(steer, half_life, idf, weights)
        return self._searcher.search(text, k, by, where, options)

    def similar(
        self,
        id: int,
        k: int = 10,
        *,
        by: By = "dense",
        where: Where | None = None,
        half_life: str | timedelta | None = None,
        idf: bool | None = None,
    ) -> Hits:
        """Return the k memories nearest to a stored one, itself left out. Loads no embedder."""
        self._open_database()
        return self._searcher.similar(check_id(id), k, by, where, Options(None, half_life, idf))

    def search_vector(
        self,
        vector: ArrayLike,
        k: int = 10,
        *,
        where: Where | None = None,
        steer: Query | None = None,
        half_life: str | timedelta | None = None,
        fetch: bool = True,
    ) -> Hits:
        """Return the k memories nearest to a vector (d,) of the store's embedder, by cosine.

        ``fetch=False`` reads none of them until one is looked at, as for ``composite``. Loads no
        embedder. Raises ``InvalidVector``.
        """
        self._open_database()
        options = Options(steer, half_life, fetch=fetch)
        return self._searcher.by_vector(vector, k, where, options)

    def explain(self, id: int) -> Meaning:
        """Return what one memory means, in neurons and their labels. Raises ``MemoryNotFound``."""
        from memstore import meaning

        return meaning.explain(self._searcher, check_id(id))

    def diff(self, one: int, other: int) -> Difference:
        """Return what two memories share, and what each has alone. Raises ``MemoryNotFound``."""
        from memstore import meaning

        return meaning.diff(self._searcher, check_id(one), check_id(other))

    def copies(self, id: int) -> list[Difference]:
        """Return what a memory nearly repeats, and what repeats it, each beside it.

        As they were found when inserted with ``on_duplicate="link"``. Raises ``MemoryNotFound``.
        """
        from memstore import meaning

        return meaning.copies(self._searcher, check_id(id))

    def novelty(self, text: str) -> Novelty:
        """Return how new a text is to this store, before it is inserted.

        Which neurons fire for it that never fired here, how much of it its trace leaves unsaid, and
        the memory nearest to it. Raises ``InvalidText``.
        """
        from memstore import novelty

        self._open_database()
        return novelty.novelty(self._searcher, check_text(text))

    def diverse(self, hits: Hits, k: int = 10, *, cover: float = 0.5) -> Hits:
        """Return k of many hits that between them say most: ``diverse(store.search("work", 100))``.

        ``cover``: 0 goes by nearness alone, 1 by how many concepts, rare ones first, are covered
        (``memstore.diversity``). In the order chosen, so scores need not fall.
        """
        from memstore import diversity

        self._open_database()
        return diversity.diverse(self._searcher, hits, k, cover)

    def audit(self, by: Grouping = "category") -> Audit:
        """Return what the store is about: common neurons, what sets groups apart, what is new.

        ``by`` groups memories by "category" or "month". Also near-copies. No model is asked.
        """
        from memstore import audit

        return audit.audit(self._searcher, by)

    def explain_query(self, query: Query | None = None, k: int = 10, **options: Any) -> Explanation:
        """Answer a query and say how: the plan, what it read and how long each step took.

        With an expression as for ``composite``; with ``text=...`` as for ``search``; with
        ``vector=...`` as for ``search_vector``. ``print`` shows it.
        """
        asked: dict[str, Callable[..., Hits]] = {
            "text": self.search,
            "vector": self.search_vector,
        }
        named = [name for name in asked if name in options]
        if (query is not None) + len(named) != 1:
            raise InvalidQuery("explain one query: an expression, text=... or vector=...")
        self._open_database()
        if query is not None:
            return self._searcher.explain(lambda: self.composite(query, k, **options))
        first = options.pop(named[0])
        return self._searcher.explain(lambda: asked[named[0]](first, k, **options))

    @property
    def neurons(self) -> Neurons:
        """The neurons of this store's encoder: ``store.neurons[15]``, ``.label(15, "grief")``."""
        return Neurons(self._open_database(), self._searcher)

    @property
    def lenses(self) -> Lenses:
        """Neuron expressions saved under names: ``store.lenses.save("calm", "15 - 5")``."""
        from memstore.lenses import Lenses

        return Lenses(self._open_database(), self._searcher)
