"""Which texts meet in which step: pure functions of (seed, step), as for images.

Legend: B pairs of a batch, C candidates for a hard negative, E length of a stored embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.counter_random import Purpose, uniforms
from tessera.pipeline.index.captions import CaptionTable
from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.index.embeddings import TextEmbeddings
from tessera.pipeline.order import SampleOrder, Visits

Place = tuple[str, int]
"""A text: its caption source and its row there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Texts of a batch."""

    queries: list[str]
    """B texts."""
    documents: list[str]
    """B texts; text i is of the same image as query i, and another one."""
    negatives: list[str]
    """B texts, each of another image than query i; none without hard negatives."""
    sample_ids: NDArray[np.int64]
    """[B] whose image queries and documents are of."""
    negative_ids: NDArray[np.int64]
    """[B] whose image the negatives are of; empty without them."""


class TextPool:
    """The texts of samples in several caption sources."""

    def __init__(self, dataset: Dataset, sources: Sequence[str]) -> None:
        """Open the sources and find the samples with at least two texts.

        A text without tokens, whose place was kept when its source was added, does not count.

        Raises:
            ValueError: there is no such source, or too few samples have two texts.
        """
        self._tables = {source: dataset.index.captions(source) for source in sources}
        counts = np.zeros(dataset.index.num_samples, np.int64)
        for table in self._tables.values():
            there = np.diff(table.token_offsets) > 0
            counts += np.bincount(table.sample[there], minlength=len(counts))
        used = np.arange(len(counts)) if dataset.rows is None else dataset.rows.astype(np.int64)
        self.sample_ids = used[counts[used] >= 2]
        """[S] rows of the index with at least two texts, ascending."""
        if len(self.sample_ids) < 2:
            raise ValueError(
                f"{len(self.sample_ids)} samples have two texts in {', '.join(sources)}: name "
                "more --sources, or add one with tools/add_captions.py"
            )

    def of_samples(self, samples: NDArray[np.int64]) -> list[list[Place]]:
        """All texts of each sample, source after source."""
        found: list[list[Place]] = [[] for _ in samples]
        for source, table in self._tables.items():
            rows, offsets = table.rows(samples)
            there = table.lengths(rows) > 0
            owners = np.repeat(np.arange(len(samples)), np.diff(offsets))[there]
            for owner, row in zip(owners.tolist(), rows[there].tolist(), strict=True):
                found[owner].append((source, row))
        return found

    def texts(self, places: Sequence[Place]) -> list[str]:
        """The texts at some places."""
        return [_text(self._tables[source], row) for source, row in places]


class PairDraw:
    """The pairs of every step."""

    def __init__(
        self,
        pool: TextPool,
        seed: int,
        num_samples: int,
        *,
        embeddings: Mapping[str, TextEmbeddings] | None = None,
        num_candidates: int = 1,
    ) -> None:
        """Prepare the draw.

        Args:
            pool: the texts.
            seed: of the run.
            num_samples: of the index.
            embeddings: by source, to choose hard negatives by; None for none.
            num_candidates: C.
        """
        self._pool = pool
        self._seed = seed
        self._order = SampleOrder(num_samples, seed, rows=pool.sample_ids)
        self._embeddings = embeddings
        self._num_candidates = num_candidates

    def step(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Pairs:
        """The part of a step's batch that belongs to a rank.

        Two different texts of each sample are drawn with equal chances, and which of them is the
        query is drawn with them.

        Args:
            step: from 0.
            batch_size: pairs over all ranks, a multiple of `world_size`.
            rank: whose part.
            world_size: number of parts.
        """
        visits = self._order.visits(step, batch_size).part(rank, world_size)
        draws = uniforms(self._seed, visits.passes, visits.sample_ids, Purpose.CAPTION, 2)
        queries, documents = [], []
        texts = self._pool.of_samples(visits.sample_ids)
        for places, (one, other) in zip(texts, draws.tolist(), strict=True):
            first = int(one * len(places))
            second = first + 1 + int(other * (len(places) - 1))
            queries.append(places[first])
            documents.append(places[second % len(places)])
        negatives, negative_ids = self._negatives(visits, documents)
        return Pairs(
            queries=self._pool.texts(queries),
            documents=self._pool.texts(documents),
            negatives=self._pool.texts(negatives),
            sample_ids=visits.sample_ids,
            negative_ids=negative_ids,
        )

    def _negatives(
        self, visits: Visits, documents: list[Place]
    ) -> tuple[list[Place], NDArray[np.int64]]:
        """For each document the closest of C texts of other samples, and their samples."""
        if self._embeddings is None:
            return [], np.empty(0, np.int64)
        ids, count = self._pool.sample_ids, self._num_candidates
        draws = uniforms(self._seed, visits.passes, visits.sample_ids, Purpose.TEXT, 2 * count)
        own = np.searchsorted(ids, visits.sample_ids)[:, None]
        steps = 1 + (draws[:, :count] * (len(ids) - 1)).astype(np.int64)
        others = ids[(own + steps) % len(ids)]
        texts = self._pool.of_samples(others.reshape(-1))
        which = draws[:, count:].reshape(-1).tolist()
        candidates = [places[int(u * len(places))] for places, u in zip(texts, which, strict=True)]
        vectors = self._unit(candidates).reshape(len(documents), count, -1)
        scores = np.einsum("bce,be->bc", vectors, self._unit(documents))
        chosen = scores.argmax(axis=1)
        rows = np.arange(len(documents))
        closest = [candidates[place] for place in (rows * count + chosen).tolist()]
        return closest, others[rows, chosen]

    def _unit(self, places: list[Place]) -> NDArray[np.float32]:
        """[len(places), E] stored embeddings at unit length."""
        assert self._embeddings is not None
        rows = np.array([row for _, row in places])
        sources = np.array([source for source, _ in places])
        dim = next(iter(self._embeddings.values())).dim
        found = np.empty((len(places), dim), np.float32)
        for source, store in self._embeddings.items():
            found[sources == source] = store.lookup(rows[sources == source])
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _text(table: CaptionTable, row: int) -> str:
    return table.text[row].as_py()
