"""Pictures for pages: what the model saw of some images, and what it found for some queries.

Legend: B images, N patches of an image, K clusters of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tessera.pipeline.index.tokenizer import token_strings
from tessera.report.pictures import GalleryItem
from tessera.report.run_data import NUM_RESULTS, RetrievalExample

if TYPE_CHECKING:  # whoever has a loader or a model has waited for torch already
    from torch import Tensor

    from tessera.evaluation.retrieval import RetrievalRun
    from tessera.model.config import ClipConfig
    from tessera.pipeline.index import Index
    from tessera.pipeline.loader import Loader
    from tessera.pipeline.stages import Preview


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
    from tessera.pipeline import LoaderConfig, open_evaluation_loader

    vision = architecture.vision
    config = LoaderConfig(batch_size=1, image_size=vision.image_size, patch_size=vision.patch_size)
    with open_evaluation_loader(index.directory, config) as loader:
        table = loader.captions.first

        def picture(image: int) -> NDArray[np.uint8]:
            images = loader.preview(int(run.sample_ids[image])).images
            # Black, as decoders have it, if the picture has gone bad since it was scored.
            return images[0].numpy() if len(images) else np.zeros(images.shape[1:], dtype=np.uint8)

        def caption(text: int) -> str:
            return table.texts(run.text_rows[text : text + 1])[0]

        def key(image: int) -> str:
            return index.keys([int(run.sample_ids[image])])[0]

        examples = []
        for text in _some_right_some_wrong(run.ranks.of_texts == 0, num_each):
            own = int(run.image_of_text[text])
            best = _nearest(run.image_features, run.text_features[text])
            found = [(picture(image), score, image == own) for image, score in best]
            examples.append(
                RetrievalExample(
                    kind="text_to_image",
                    query_text=caption(text),
                    query_key=key(own),
                    results=found,
                    answer=picture(own),
                )
            )
        for image in _some_right_some_wrong(run.ranks.of_images == 0, num_each):
            texts = np.flatnonzero(run.image_of_text == image)
            best = _nearest(run.text_features, run.image_features[image])
            examples.append(
                RetrievalExample(
                    kind="image_to_text",
                    query_image=picture(image),
                    query_key=key(image),
                    results=[(caption(text), score, text in texts) for text, score in best],
                    answer=caption(int(texts[0])),
                )
            )
    return examples


def _nearest(features: Tensor, query: Tensor) -> list[tuple[int, float]]:
    """(place, similarity) of what is nearest, best first."""
    similarity = features @ query
    best = similarity.topk(min(NUM_RESULTS, len(similarity)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _some_right_some_wrong(right: Tensor, count: int) -> Sequence[int]:
    """Places of `count` queries, half of them right where there are enough of both.

    Taken at even distances, so that they show the whole set and not its first shard.
    """
    hits, misses = (places.flatten().tolist() for places in (right.nonzero(), (~right).nonzero()))
    num_hits = min(len(hits), max(count // 2, count - len(misses)))
    return _spread(hits, num_hits) + _spread(misses, min(len(misses), count - num_hits))


def _spread(places: list[int], count: int) -> list[int]:
    return [places[i * len(places) // count] for i in range(count)]
