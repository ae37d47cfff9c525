"""Pictures described and joined with their alt texts: local models and scripted ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tessera.pipeline.index import open_index
from tessera.tools.captioning.engine import Completion
from tessera.tools.captioning.judging import Fault
from tessera.tools.captioning.prompts import RECAPTION_FILE, read_recaption_prompts
from tessera.tools.captioning.recaptioner import Recaptioner
from tessera.tools.captioning.vision_language_model import VisionLanguageModel
from tests.tiny_models import save_llava

CPU = torch.device("cpu")
PICTURES = [
    Image.new("RGB", (40 + 8 * n, 56), colour)
    for n, colour in enumerate(("red", "blue", "white", "black"))
]


@dataclass
class Describer:
    """Names the mean colour of a picture; what it does besides is scripted."""

    script: Callable[[str], str] = str

    def describe(self, pictures: Sequence[Image.Image]) -> list[str]:
        texts = [self.script(_colour(picture)) for picture in pictures]
        if "wrong" in texts:
            raise ValueError("a picture that the model cannot take in")
        return texts


@dataclass
class Fuser:
    """Answers with the description and the alt text, or by a script."""

    script: Callable[[str, str], str] = lambda alt, said: f"{said} thing: {alt}"

    def answer(self, questions: Sequence[str], seed: int) -> list[Completion]:
        parts = [question.rpartition("Alt text: ")[2].split("\n") for question in questions]
        texts = [self.script(p[0], p[1].removeprefix("Description: ")) for p in parts]
        return [Completion(text=text, finished=True) for text in texts]

    def continue_lines(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        raise NotImplementedError


def _colour(picture: Image.Image) -> str:
    assert picture.mode == "RGB"
    red, green, blue = np.asarray(picture).reshape(-1, 3).mean(axis=0)
    known = {"red": red, "green": green, "blue": blue}
    return max(known, key=lambda name: known[name])


def recaptioner(index_dir: Path, pictures: Describer, texts: Fuser) -> Recaptioner:
    prompts = read_recaption_prompts(RECAPTION_FILE)
    return Recaptioner(
        open_index(index_dir), pictures, texts, prompts, batch_size=4, num_threads=2, seed=0
    )


def test_a_description_is_of_the_sample_s_own_picture(coloured_index: Path) -> None:
    ids = np.array([0, 1, 2, 38, 93])
    with recaptioner(coloured_index, Describer(), Fuser()) as captioner:
        found = captioner.attempt(captioner.prepare(ids), 0)
    names = ["red", "green", "blue", "blue", "yellow"]
    for outcome, number, name in zip(found, ids, names, strict=True):
        said = outcome.text.partition(" thing: ")[0]
        assert said == {"yellow": "red"}.get(name, name)
        assert outcome.text.endswith(f"a {name} picture with the number {number}")
        assert outcome.fault is None


def test_refusals_of_either_model_and_bad_pictures_cost_one_sample_each(
    coloured_index: Path,
) -> None:
    said = {"red": "I'm sorry, I cannot help", "green": "wrong", "blue": "blue"}
    ids = np.arange(3)
    with recaptioner(coloured_index, Describer(lambda c: said[c]), Fuser()) as captioner:
        faults = [material.fault for material in captioner.prepare(ids)]
    assert faults == [Fault.REFUSED, Fault.UNREADABLE, None]
    fuser = Fuser(lambda alt, _said: "No caption." if "red" in alt else alt)
    with recaptioner(coloured_index, Describer(), fuser) as captioner:
        outcomes = captioner.attempt(captioner.prepare(ids), 0)
    assert [outcome.fault for outcome in outcomes[:2]] == [Fault.REFUSED, Fault.COPY]


def test_a_shard_that_is_damaged_costs_its_pictures_only(
    coloured_index: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(coloured_index.parent, tmp_path / "copy")
    index = open_index(copy / "index")
    with Path(index.shards[0].location).open("r+b") as shard:
        shard.seek(int(index.offset[1]))
        shard.write(bytes(int(index.size[1])))
    with recaptioner(copy / "index", Describer(), Fuser()) as captioner:
        faults = [material.fault for material in captioner.prepare(np.arange(4))]
    assert faults == [None, Fault.UNREADABLE, None, None]


@pytest.mark.parametrize(
    ("kind", "prompt"), [("llava", "a picture of the"), ("blip", "a picture of the"), ("blip", "")]
)
def test_descriptions_of_local_models_do_not_hang_on_the_batch(
    kind: str, prompt: str, request: pytest.FixtureRequest
) -> None:
    model = VisionLanguageModel(request.getfixturevalue(kind), prompt, 8, CPU)
    together = model.describe(PICTURES)
    assert together == [model.describe([picture])[0] for picture in PICTURES]
    assert all(len(text.split()) <= 8 for text in together)
    assert len(set(together)) > 1
    assert not any("picture of" in text for text in together)  # the prompt is cut off


def test_a_prompt_without_a_chat_template_is_used_as_written(tmp_path: Path, llava: Path) -> None:
    plain = VisionLanguageModel(
        save_llava(tmp_path / "plain", chat_template=None), "<image> the old cat =>", 8, CPU
    )
    chat = VisionLanguageModel(llava, "the old cat", 8, CPU)
    assert plain.describe(PICTURES) == chat.describe(PICTURES)
