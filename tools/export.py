"""Give a trained model to open_clip or to Hugging Face transformers.

    python tools/export.py runs/demo --format open_clip --out model
    python tools/export.py CHECKPOINT --format open_clip --out model.safetensors
    python tools/export.py CHECKPOINT --format hugging-face --out model
    python tools/export.py CHECKPOINT --format open_clip-image --out visual.safetensors
    python tools/export.py START --average runs/finetune --alpha 0.5 --format open_clip --out model

CHECKPOINT is a run folder (its newest checkpoint is taken), a checkpoint folder, or a model's
folder of open_clip or Hugging Face. For open_clip, the result is a folder that opens under the name
`local-dir:FOLDER`, whatever the model; a single .safetensors file goes with a model that open_clip
knows: `open_clip.create_model_and_transforms(NAME, pretrained=FILE)`. For transformers, a folder
opens with `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`. Neither has a text tower
that reads a language model's embeddings (docs/llm2clip.md): of such a model the image tower alone
is written, as a file for `load_state_dict` of `.visual` of open_clip's model.

--average writes the weights between two models, (1 - alpha) * CHECKPOINT + alpha * the other
(WiSE-FT): a fine-tuned model that keeps more of what its start could.

The result is opened again by the library it is meant for, and its features of random images and
texts are compared with the checkpoint's, for open_clip its pixels and token ids too; only then does
it get its name.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tessera.evaluation.image_sets import evaluation_transform
from tessera.model import Clip, build_clip, hugging_face, open_clip_weights
from tessera.model.averaging import average_weights
from tessera.model.config import ClipConfig
from tessera.model.open_clip_config import known_to_open_clip, preprocess_config
from tessera.model.pretrained import (
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_WEIGHTS,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    load,
    load_pretrained,
    read_config,
    require_usual_resize,
)
from tessera.pipeline.index.tokenizer import tokenize_prompts
from tessera.training.run_folder import named, newest_checkpoint
from tessera.training.session import EMA
from tessera.training.tensor_file import save_tensors

TOLERANCE = 1e-5
"""Largest difference of a value of two features of unit length, in float32, and of two pixels."""
_CAPTIONS = ("a photo of a cat.", "Two dogs, on a hill; it\u2019s raining \u2026", "word " * 100)
"""Tokenised by both sides: plain, with what is cleaned, and too long for any context."""


class ExportError(Exception):
    """The result gives other pixels, token ids or features than the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Give a trained model to another library."""

    checkpoint: tyro.conf.Positional[Path]
    """Run folder, checkpoint folder, or a model's folder of open_clip or Hugging Face."""
    format: Literal["open_clip", "open_clip-image", "hugging-face"]
    """For open_clip, its image tower alone, or transformers' CLIPModel."""
    out: Path
    """Folder to make, or for open_clip a .safetensors file; for open_clip-image always a file."""
    ema: bool = False
    """Take the average of the weights that the run kept (`optim.ema_samples`)."""
    average: Path | None = None
    """Second model, of the same architecture, named as the first: WiSE-FT's weights in between."""
    alpha: float = 0.5
    """Share of the second model, 0 to 1."""
    overwrite: bool = False
    """Replace what is already at --out."""

    def __post_init__(self) -> None:
        if self.out.exists() and not self.overwrite:
            raise ValueError(f"{self.out} exists: choose another --out, or add --overwrite")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha is a share, 0 to 1, got {self.alpha}")
        for inside in (folder.resolve() for folder in (self.folder, self.other) if folder):
            if self.out.resolve() in (inside, *inside.parents):
                raise ValueError(
                    f"--out {self.out} holds the checkpoint, which --overwrite would delete: "
                    "choose another"
                )
        if self.format == "hugging-face" and importlib.util.find_spec("transformers") is None:
            raise ValueError("this format is checked by transformers: pip install transformers")
        if self.ema and not self.weights.is_file():
            raise ValueError(
                f"there is no {self.weights}: only runs with optim.ema_samples keep an average"
            )

    @property
    def folder(self) -> Path:
        """The checkpoint itself, of a run its newest one."""
        return newest_checkpoint(self.checkpoint)

    @property
    def other(self) -> Path | None:
        """The checkpoint of --average, of a run its newest one."""
        return newest_checkpoint(self.average) if self.average else None

    @property
    def weights(self) -> Path:
        """Where the weights are read from."""
        return self.folder / f"{EMA}.safetensors" if self.ema else self.folder


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(
        lambda words: export(
            tyro.cli(Arguments, args=words, description=program.describe(__doc__))
        ),
        argv,
        failures=(ExportError,),
        stopped="stopped; nothing was written",
    )


def export(arguments: Arguments) -> dict[str, object]:
    """Write, check, and name the result; returns what is said of it to a program.

    Raises:
        ExportError: The other library gives other features.
        FileNotFoundError: There is no such checkpoint.
        ValueError: The checkpoint's model cannot be expressed in this format.
    """
    out, folder = arguments.out, arguments.folder
    require_usual_resize(folder)
    config = named(read_config(folder), folder)
    known = known_to_open_clip(config)
    if arguments.format == "open_clip" and config.adapter:
        raise ValueError(
            f"{config.name!r} reads embeddings of {config.adapter.encoder}, and open_clip has no "
            "such text tower: give its image tower away with --format open_clip-image"
        )
    if arguments.format == "open_clip-image":
        if out.suffix != ".safetensors":
            raise ValueError("an image tower becomes a single file: let --out end in .safetensors")
    elif out.suffix == ".safetensors" and (arguments.format != "open_clip" or not known):
        raise ValueError(
            f"{config.name!r} needs its config beside its weights: let --out be a folder"
        )
    clip = build_clip(config).eval()
    load_pretrained(clip, arguments.weights)
    if arguments.other:
        average_weights(clip, load(arguments.other), arguments.alpha)
    partial = out.with_name(f".partial-{os.getpid()}-{out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        difference = WRITERS[arguments.format](clip, partial)
        if difference > TOLERANCE:
            raise ExportError(f"its features differ by {difference:.1e}: not written")
        remove(out)
        partial.rename(out)
    finally:
        remove(partial)
    print(f"checkpoint  {folder}")
    if arguments.other:
        first, second = 1 - arguments.alpha, arguments.alpha
        print(f"averaged    {first:g} of it and {second:g} of {arguments.other}")
    print(f"model       {config.name}, {sum(p.numel() for p in clip.parameters()):,} parameters")
    print(f"checked     features differ by at most {difference:.1e}")
    print(f"open it     {opening(arguments, config)}")
    if arguments.format == "open_clip" and config.text.tokenizer:
        print(f"tokenizer   not checked: put the files of {config.text.tokenizer} into the folder")
    return {
        "checkpoint": str(folder),
        "average": str(arguments.other or ""),
        "alpha": arguments.alpha if arguments.other else None,
        "model": config.name,
        "format": arguments.format,
        "out": str(out),
        "max_difference": difference,
    }


def write_open_clip(clip: Clip, path: Path) -> float:
    """Write a file or a folder for open_clip.

    Returns:
        Largest difference of its features from the model's.

    Raises:
        ExportError: open_clip makes other pixels or token ids of the same picture and captions.
    """
    import open_clip

    weights = open_clip_weights.dump(clip)
    if path.suffix == ".safetensors":
        save_tensors(weights, path)
        name, pretrained = clip.config.name, str(path)
    else:
        path.mkdir()
        save_tensors(weights, path / OPEN_CLIP_WEIGHTS)
        content = {
            "model_cfg": open_clip_weights.open_clip_config(clip.config),
            "preprocess_cfg": preprocess_config(clip.config),
        }
        (path / OPEN_CLIP_CONFIG).write_text(json.dumps(content, indent=1), encoding="utf-8")
        name, pretrained = f"local-dir:{path}", None
    theirs: Any  # torch.nn.Module does not say that it has encoders
    theirs, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained)
    theirs.eval()
    require_same_pixels(clip.config, transform)
    if clip.config.text.uses_clip_bpe:
        require_same_tokens(clip.config, open_clip.get_tokenizer(name))
    probe = Probe.of(clip.config)
    with torch.no_grad():
        pair = theirs.encode_image(probe.images), theirs.encode_text(probe.texts)
    return probe.difference(clip, *pair)


def require_same_pixels(config: ClipConfig, transform: Any) -> None:
    """Refuse a result whose transform brings a picture to other pixels than the model's own.

    Raises:
        ExportError: it does.
    """
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    theirs, ours = transform(picture), evaluation_transform(config)(picture)
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=TOLERANCE):
        raise ExportError(
            f"open_clip normalises pixels for {config.name!r} otherwise than this checkpoint: let "
            "--out be a folder, which keeps their mean and deviation"
        )


def require_same_tokens(config: ClipConfig, tokenizer: Any) -> None:
    """Refuse a result whose tokenizer gives other ids than the model was trained on.

    Raises:
        ExportError: it does.
    """
    context = config.text.context_length
    tokens, offsets = tokenize_prompts(_CAPTIONS, context)
    ours = torch.zeros(len(_CAPTIONS), context, dtype=torch.long)
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        ours[row, : end - start] = torch.from_numpy(tokens[start:end]).long()
    if not torch.equal(tokenizer(list(_CAPTIONS)), ours):
        raise ExportError("open_clip's tokenizer gives other token ids: not written")


def write_open_clip_image(clip: Clip, path: Path) -> float:
    """Write the image tower's weights as a file for `.visual` of open_clip's model.

    Returns:
        Largest difference of its features from the model's.
    """
    import open_clip

    prefix = "visual."
    weights = {
        name.removeprefix(prefix): value
        for name, value in open_clip_weights.dump(clip).items()
        if name.startswith(prefix)
    }
    save_tensors(weights, path)
    options = open_clip_weights.open_clip_config(replace(clip.config, adapter=None))
    options.pop("custom_text", None)
    theirs = open_clip.CLIP(**options).eval()
    theirs.visual.load_state_dict(load_file(path))
    probe = Probe.of(clip.config)
    with torch.no_grad():
        return probe.image_difference(clip, theirs.encode_image(probe.images))


def write_hugging_face(clip: Clip, path: Path) -> float:
    """Write a folder for transformers.

    Returns:
        Largest difference of its features from the model's.
    """
    from transformers import CLIPModel

    weights = hugging_face.dump(clip)  # refuses before anything is written
    path.mkdir()
    save_tensors(weights, path / HUGGING_FACE_WEIGHTS, metadata={"format": "pt"})
    content = json.dumps(hugging_face.hugging_face_config(clip.config), indent=1)
    (path / HUGGING_FACE_CONFIG).write_text(content, encoding="utf-8")
    for name, text in hugging_face.processor_files(clip.config).items():
        (path / name).write_text(text, encoding="utf-8")
    theirs: Any = CLIPModel.from_pretrained(path).eval()
    probe = Probe.of(clip.config)
    with torch.no_grad():
        pair = theirs(input_ids=probe.texts, pixel_values=probe.images)
    return probe.difference(clip, pair.image_embeds, pair.text_embeds)


WRITERS = {
    "open_clip": write_open_clip,
    "open_clip-image": write_open_clip_image,
    "hugging-face": write_hugging_face,
}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Random images and texts, as the padded libraries take them and as ours does."""

    images: Tensor
    """[B, 3, S, S] float32, normalised."""
    texts: Tensor
    """[B, C] int64, zeros behind each text."""
    lengths: list[int]
    """Tokens of each text that the tower is to see."""

    @staticmethod
    def of(config: ClipConfig, count: int = 4) -> Probe:
        """Draw one for a model, the same at each call."""
        generator = torch.Generator().manual_seed(0)
        size, text = config.vision.image_size, config.text
        lengths = torch.randint(2, text.context_length + 1, (count,), generator=generator).tolist()
        low, high = text.eos_id + 1, text.vocab_size - 2
        texts = torch.randint(low, high, (count, text.context_length), generator=generator)
        end = text.eos_id if text.pool == "eos" else text.vocab_size - 1
        for row, length in zip(texts, lengths, strict=True):
            row[length - 1] = end
            row[length:] = 0
        # Where padding reaches the feature, it is part of the text.
        if not text.causal or text.pool == "last":
            lengths = [text.context_length] * count
        images = torch.randn(count, 3, size, size, generator=generator)
        return Probe(images=images, texts=texts, lengths=lengths)

    def difference(self, clip: Clip, image_features: Tensor, text_features: Tensor) -> float:
        """Largest difference of a value, all features brought to unit length."""
        tokens = [row[:n] for row, n in zip(self.texts, self.lengths, strict=True)]
        text_offsets = torch.tensor([0, *self.lengths]).cumsum(0).int()
        with torch.no_grad():
            text = clip.encode_text(torch.cat(tokens).int(), text_offsets)
        return max(self.image_difference(clip, image_features), _largest_gap(text, text_features))

    def image_difference(self, clip: Clip, image_features: Tensor) -> float:
        """The same of the images alone."""
        count, vision = len(self.images), clip.config.vision
        patches = F.unfold(self.images, vision.patch_size, stride=vision.patch_size)
        # unfold has (channel, y, x) in a patch; ours is (y, x, channel).
        patches = patches.transpose(1, 2).unflatten(2, (3, -1)).transpose(2, 3).flatten(2)
        positions = torch.arange(vision.num_patches, dtype=torch.int32).repeat(count)
        offsets = torch.arange(count + 1, dtype=torch.int32) * vision.num_patches
        with torch.no_grad():
            image = clip.encode_image(patches.flatten(0, 1), positions, offsets)
        return _largest_gap(image, image_features)


def _largest_gap(ours: Tensor, theirs: Tensor) -> float:
    return float((F.normalize(ours, dim=-1) - F.normalize(theirs, dim=-1)).abs().max())


def opening(arguments: Arguments, config: ClipConfig) -> str:
    """Line of Python that opens the result."""
    if arguments.format == "open_clip-image":
        return f"model.visual.load_state_dict(safetensors.torch.load_file({str(arguments.out)!r}))"
    if arguments.format == "hugging-face":
        return f"transformers.CLIPModel.from_pretrained({str(arguments.out)!r})"
    call = "open_clip.create_model_and_transforms"
    if arguments.out.suffix == ".safetensors":
        return f"{call}({config.name!r}, pretrained={str(arguments.out)!r})"
    return f"{call}('local-dir:{arguments.out}')"


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
