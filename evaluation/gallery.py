"""Pictures for the report: what the model saw of some images, and what it found for some queries.

Legend: B images, N patches of an image, K clusters of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.evaluation.report.data import GalleryItem, RetrievalExample
from tessera.evaluation.retrieval import RetrievalRun
from tessera.model.config import ClipConfig
from tessera.pipeline import LoaderConfig, open_evaluation_loader
from tessera.pipeline.index import Index
from tessera.pipeline.index.tokenizer import token_strings
from tessera.pipeline.loader import Loader
from tessera.pipeline.stages import Preview

_NUM_RESULTS = 5


def mask_gallery(loader: Loader, num_items: int) -> tuple[list[GalleryItem], NDArray[np.float64]]:
    """Images of the first batch as the model sees them.

    Args:
        loader: a training loader; its place is not moved.
        num_items: how many images to show.

    Returns:
        The items, and the share of hidden patches of every image of the batch, [B].
    """
    shown = loader.preview(0)
    hidden = 1 - shown.visible.double().mean(dim=1).cpu().numpy()
    return gallery_items(loader, shown, num_items), hidden


def gallery_items(loader: Loader, shown: Preview, num_items: int) -> list[GalleryItem]:
    """The first images of a previewed step as the model sees them, with all texts of each.

    Args:
        loader: it made the preview.
        shown: of any step.
        num_items: how many images to show.
    """
    anchors, cluster = _clusters(loader, shown)
    captions = loader.captions
    rows = shown.caption_rows.reshape(-1, captions.texts_per_sample)
    offsets = shown.text_offsets[:: rows.shape[1]]
    side = isqrt(loader.config.num_patches)
    return [
        GalleryItem(
            key=loader.index.keys([int(shown.visits.sample_ids[i])])[0],
            caption=" / ".join(captions.texts(rows[i])),
            crop=shown.images[i].cpu().numpy(),
            visible=shown.visible[i].cpu().numpy(),
            anchors=anchors[i],
            cluster=cluster[i],
            grid=(side, side),
            tokens=token_strings(shown.tokens[slice(*offsets[i : i + 2])]),
        )
        for i in range(min(num_items, len(rows)))
    ]


def _clusters(loader: Loader, shown: Preview) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Seeds [B, K] and the cluster of each hidden patch [B, N]; -1 where it is visible."""
    clusters = loader.mask.clusters(shown.patches, shown.noise)
    if clusters is None:
        none = np.empty((len(shown.visible), 0), dtype=np.int64)
        return none, np.full(shown.visible.shape, -1, dtype=np.int64)
    members = clusters.members.masked_fill(shown.visible, -1)
    return clusters.seeds.cpu().numpy(), members.cpu().numpy()


def retrieval_examples(
    run: RetrievalRun, index: Index, architecture: ClipConfig, num_each: int
) -> list[RetrievalExample]:
    """Queries both ways, as many that found the right thing first as that did not, if there are.

    Args:
        run: features and who belongs to whom.
        index: where pictures and captions come from.
        architecture: of the model, for the size of the pictures.
        num_each: queries in each direction.
    """
    config = LoaderConfig(
        batch_size=1,
        image_size=architecture.vision.image_size,
        patch_size=architecture.vision.patch_size,
    )
    with open_evaluation_loader(index.directory, config) as loader:
        shelf = _Shelf(run, index, loader)
        return _text_queries(shelf, run, num_each) + _image_queries(shelf, run, num_each)


class _Shelf:
    """Pictures and captions of a retrieval run, by their place in it."""

    def __init__(self, run: RetrievalRun, index: Index, loader: Loader) -> None:
        self._run = run
        self._index = index
        self._table = loader.captions.first
        self._loader = loader
        self.owner = torch.from_numpy(run.image_of_text)

    def picture(self, image: int) -> NDArray[np.uint8]:
        images = self._loader.preview(int(self._run.sample_ids[image])).images
        # Black, as decoders have it, if the picture has gone bad since it was scored.
        return images[0].numpy() if len(images) else np.zeros(images.shape[1:], dtype=np.uint8)

    def caption(self, text: int) -> str:
        return self._table.texts(self._run.text_rows[text : text + 1])[0]

    def key(self, image: int) -> str:
        return self._index.keys([int(self._run.sample_ids[image])])[0]


def _text_queries(shelf: _Shelf, run: RetrievalRun, num_each: int) -> list[RetrievalExample]:
    """Texts, and the pictures that are nearest to them."""
    examples = []
    for text in _some_right_some_wrong(run.ranks.of_texts == 0, num_each):
        own = int(shelf.owner[text])
        similarity = run.image_features @ run.text_features[text]
        best = similarity.topk(min(_NUM_RESULTS, len(similarity)))
        found = [shelf.picture(image) for image in best.indices.tolist()]
        examples.append(
            RetrievalExample(
                kind="text_to_image",
                query_text=shelf.caption(text),
                query_key=shelf.key(own),
                results=list(
                    zip(found, best.values.tolist(), (best.indices == own).tolist(), strict=True)
                ),
                answer=shelf.picture(own),
            )
        )
    return examples


def _image_queries(shelf: _Shelf, run: RetrievalRun, num_each: int) -> list[RetrievalExample]:
    """Pictures, and the captions that are nearest to them."""
    examples = []
    for image in _some_right_some_wrong(run.ranks.of_images == 0, num_each):
        similarity = run.text_features @ run.image_features[image]
        best = similarity.topk(min(_NUM_RESULTS, len(similarity)))
        right = shelf.owner[best.indices] == image
        found = [shelf.caption(text) for text in best.indices.tolist()]
        examples.append(
            RetrievalExample(
                kind="image_to_text",
                query_image=shelf.picture(image),
                query_key=shelf.key(image),
                results=list(zip(found, best.values.tolist(), right.tolist(), strict=True)),
                answer=shelf.caption(int((shelf.owner == image).nonzero()[0, 0])),
            )
        )
    return examples


def _some_right_some_wrong(right: Tensor, count: int) -> Sequence[int]:
    """Places of `count` queries, half of them right where there are enough of both.

    Taken at even distances, so that they show the whole set and not its first shard.
    """
    hits, misses = (places.flatten().tolist() for places in (right.nonzero(), (~right).nonzero()))
    num_hits = min(len(hits), max(count // 2, count - len(misses)))
    return _spread(hits, num_hits) + _spread(misses, min(len(misses), count - num_hits))


def _spread(places: list[int], count: int) -> list[int]:
    return [places[i * len(places) // count] for i in range(count)]
