"""Small sets in the layouts of SugarCrepe and Winoground."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tessera.evaluation.compositional import SUGARCREPE_FILES


def write_sugarcrepe(folder: Path) -> Path:
    """Two examples in each file; numbers have gaps, as in the published ones."""
    (folder / "val2017").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 30), (200 * number, 90, 20)).save(
            folder / "val2017" / f"{number:012d}.jpg"
        )
    for kind in SUGARCREPE_FILES:
        examples = {
            str(3 * n): {
                "filename": f"{n:012d}.jpg",
                "caption": f"a picture of {kind} {n}",
                "negative_caption": f"no picture of {kind} {n}",
            }
            for n in range(2)
        }
        (folder / f"{kind}.json").write_text(json.dumps(examples), encoding="utf-8")
    return folder


def write_winoground(folder: Path) -> Path:
    """Three examples; pictures are named without their ending, as in the published file."""
    (folder / "images").mkdir(parents=True)
    (folder / "data").mkdir()
    lines = []
    for n in range(3):
        for side in (0, 1):
            name = f"ex_{n}_img_{side}.png"
            Image.new("RGB", (32, 48), (80 * n, 100 * side, 50)).save(folder / "images" / name)
        example = {"id": n, "image_0": f"ex_{n}_img_0", "image_1": f"ex_{n}_img_1"}
        captions = {"caption_0": "some plants near a light", "caption_1": "a light near plants"}
        lines.append(json.dumps({**example, **captions, "tag": "Noun", "num_main_preds": 1}))
    (folder / "data" / "examples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
