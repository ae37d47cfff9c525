"""One sample of the demo data set: JPEG bytes, captions and the structured truth."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from tessera.recipes.demo.captions import FULL, VARIED, write_captions
from tessera.recipes.demo.objects import HELDOUT_PAIRS
from tessera.recipes.demo.picture import encode_jpeg, paint_scene
from tessera.recipes.demo.scenes import Scene, Split, describe, sample_rng

_FIRST_HELDOUT_KEY = 500_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSample:
    """One picture and everything said of it."""

    key: str
    """Nine digits, unlike those of any other sample of either split."""

    jpeg: bytes
    """The picture, RGB JPEG."""

    width: int
    """Width of the picture in pixels."""

    height: int
    """Height of the picture in pixels."""

    captions: tuple[str, ...]
    """Three different captions; the first is the one in the .txt file."""

    scene: Scene
    """The structured truth."""

    split: Split
    """The split that the sample belongs to."""

    def members(self) -> list[tuple[str, bytes]]:
        """Names and contents of the sample's files in a tar shard, .cls only if held out."""
        caption = self.captions[0]
        record = {
            "caption": caption,
            "key": self.key,
            "status": "success",
            "error_message": None,
            "width": self.width,
            "height": self.height,
            "original_width": self.width,
            "original_height": self.height,
            "sha256": hashlib.sha256(self.jpeg).hexdigest(),
            "captions": self.captions,
            "set": "tessera-demo",
            "split": self.split,
            "scene": asdict(self.scene),
        }
        files = [
            ("jpg", self.jpeg),
            ("txt", caption.encode()),
            ("json", json.dumps(record).encode()),
        ]
        if self.split == "heldout":
            pair = (self.scene.things[0].colour, self.scene.background)
            files.append(("cls", str(HELDOUT_PAIRS.index(pair)).encode()))
        return [(f"{self.key}.{extension}", content) for extension, content in files]


def make_sample(seed: int, split: Split, index: int) -> DemoSample:
    """Draws and describes sample `index` of a split.

    Args:
        seed: Seed of the data set.
        split: "train" or "heldout".
        index: Number of the sample within its split, 0 to 499,999,999.

    Returns:
        The sample, byte for byte the same for the same arguments.
    """
    scene = describe(seed, split, index)
    rng = sample_rng(seed, split, index, "picture")
    image = paint_scene(rng, scene)
    detail = FULL if split == "heldout" else VARIED
    captions = write_captions(sample_rng(seed, split, index, "captions"), scene, detail)
    return DemoSample(
        key=f"{index + (_FIRST_HELDOUT_KEY if split == 'heldout' else 0):09d}",
        jpeg=encode_jpeg(rng, image),
        width=image.width,
        height=image.height,
        captions=tuple(captions),
        scene=scene,
        split=split,
    )
