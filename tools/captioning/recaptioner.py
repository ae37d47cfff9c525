"""Captions made from the picture and its alt text, after VeCLIP (Lai et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tessera.pipeline.decoding.picture import Picture, PictureError
from tessera.pipeline.index import Index
from tessera.pipeline.reader import ShardReader
from tessera.tools.captioning.engine import Completion
from tessera.tools.captioning.judging import Fault, fault_of, tidied
from tessera.tools.captioning.language_model import TextModel
from tessera.tools.captioning.prompts import RecaptionPrompts, shortened
from tessera.tools.captioning.rounds import Material, Outcome, first_captions, sampling_seed
from tessera.tools.captioning.vision_language_model import PictureModel


class Recaptioner:
    """A `Captioner`: a description of the picture, then one sentence of it and the alt text."""

    def __init__(
        self,
        index: Index,
        pictures: PictureModel,
        texts: TextModel,
        prompts: RecaptionPrompts,
        *,
        batch_size: int,
        num_threads: int,
        seed: int,
    ) -> None:
        """Prepare to caption.

        Args:
            index: has the pictures and the alt texts.
            pictures: describes.
            texts: fuses.
            prompts: what they are asked.
            batch_size: pictures described together.
            num_threads: read and decode pictures.
            seed: of the tokens drawn in fusion.
        """
        self._captions = index.captions()
        self._reader = ShardReader(index, num_threads)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._pictures = pictures
        self._texts = texts
        self._prompts = prompts
        self._batch_size = batch_size
        self._seed = seed

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End the threads and close the shards."""
        self._threads.shutdown(cancel_futures=True)
        self._reader.close()

    def prepare(self, ids: NDArray[np.int64]) -> list[Material]:
        """See `Captioner`: alt texts, and descriptions by the vision-language model."""
        descriptions: list[str | None] = []
        for first in range(0, len(ids), self._batch_size):
            descriptions += self._described(ids[first : first + self._batch_size])
        texts = first_captions(self._captions, ids)
        return [
            self._material(*parts) for parts in zip(ids.tolist(), texts, descriptions, strict=True)
        ]

    def attempt(self, materials: Sequence[Material], attempt: int) -> list[Outcome]:
        """See `Captioner`."""
        questions = [self._prompts.fill(known.caption, known.description) for known in materials]
        seed = sampling_seed(self._seed, materials, attempt)
        answers = self._texts.answer(questions, seed)
        return [self._judged(*parts) for parts in zip(answers, materials, strict=True)]

    def _material(self, number: int, caption: str, description: str | None) -> Material:
        if description is None:
            fault = Fault.UNREADABLE
        elif self._prompts.is_refusal(description):
            fault = Fault.REFUSED
        else:
            fault = None if description else Fault.EMPTY
        return Material(
            sample_id=number, caption=caption, description=description or "", fault=fault
        )

    def _described(self, ids: NDArray[np.int64]) -> list[str | None]:
        """Descriptions of a batch; None where a picture cannot be used."""
        pictures = list(self._threads.map(_decoded, self._reader.read(ids)))
        usable = [place for place, picture in enumerate(pictures) if picture is not None]
        results: list[str | None] = [None] * len(pictures)
        texts = self._describe([picture for picture in pictures if picture is not None])
        for place, text in zip(usable, texts, strict=True):
            results[place] = None if text is None else " ".join(text.split())
        return results

    def _describe(self, pictures: list[Image.Image]) -> list[str | None]:
        """The model's texts; where it refuses a batch, picture by picture, so that one is lost."""
        if not pictures:
            return []
        try:
            return list(self._pictures.describe(pictures))
        except ValueError:
            if len(pictures) == 1:
                return [None]
            return [text for picture in pictures for text in self._describe([picture])]

    def _judged(self, answer: Completion, material: Material) -> Outcome:
        text = tidied(answer.text)
        if self._prompts.is_refusal(text):
            return Outcome(fault=Fault.REFUSED)
        known = [material.caption, shortened(material.caption)]
        return Outcome(text=text, fault=fault_of(text, finished=answer.finished, copies_of=known))


def _decoded(data: bytes | OSError) -> Image.Image | None:
    """The upright RGB picture; None if it cannot be read."""
    if isinstance(data, OSError):
        return None
    try:
        return Picture(data).pixels()
    except PictureError:
        return None
