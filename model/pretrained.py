"""Weights of other runs and of other people, read without running code.

A source is a folder (a checkpoint of ours, open_clip's `local-dir:` layout, or a Hugging Face
`CLIPModel`, whole or in shards), a file that open_clip's trainer wrote, or a tag of weights that
open_clip publishes for the model. A run's folder becomes one by `training.run_folder`'s
`newest_checkpoint`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tessera.model import hugging_face, open_clip_weights
from tessera.model.clip import Clip, build_clip
from tessera.model.config import CLIP_PIXEL_MEAN, CLIP_PIXEL_STD, ClipConfig
from tessera.model.open_clip_config import from_open_clip, pixel_statistics
from tessera.model.positions import resize_image_positions, resize_text_positions

logger = logging.getLogger(__name__)

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
HUGGING_FACE_WEIGHTS = "model.safetensors"
HUGGING_FACE_CONFIG = "config.json"
HUGGING_FACE_PIXELS = "preprocessor_config.json"

_WEIGHT_FILES = (
    OPEN_CLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    HUGGING_FACE_WEIGHTS,
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names under which a folder may hold its weights; the first that is there is read. An index names
the shards and which tensors lie in each."""

_BICUBIC = 3
"""Pillow's number of it, by which Hugging Face's files name it."""

# What wrappers put before every name, and what OpenAI's files hold beside weights.
_WRAPPERS = ("module.", "_orig_mod.")
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}

# Fields that shape nothing but the start of training or a table that is resized.
_FREE_FIELDS = {"image_size", "context_length", "layer_scale", "positions", "mlp_ratio"}
_FREE_FIELDS |= {"tokenizer", "tokenizer_options"}


def load(folder: str | Path) -> Clip:
    """A model with the weights and the configuration that lie in a folder, ready to evaluate.

    Args:
        folder: a checkpoint or an export of Tessera, or an open_clip or Hugging Face folder.

    Raises:
        FileNotFoundError: there is no such folder, or it has no configuration or no weights.
        ValueError: the model cannot be expressed here.
    """
    clip = build_clip(read_config(Path(folder)))
    load_pretrained(clip, folder)
    return clip.eval()


def load_pretrained(clip: Clip, source: str | Path, *, resize: bool = True) -> list[str]:
    """Fills a model with weights from a file, a folder or open_clip's published ones.

    A folder's config and a tag's are held against the model's, so that weights never run under
    another activation, pooling or pixel normalisation. A single file says nothing of these.

    Args:
        clip: Model to fill; it changes wholly or not at all.
        source: A folder; a file (.safetensors, or .pt, .pth, .bin as torch.save writes it); or a
            tag such as `laion2b_s34b_b88k`, which open_clip looks for in its own cache and may
            download.
        resize: Whether position tables of another size are resized: bicubic with antialiasing
            for images, linear for text.

    The log says how many of the model's tensors came from the source.

    Returns:
        What was not loaded as it was found, one sentence each, for a person to read.

    Raises:
        FileNotFoundError: There is no such source, or open_clip could not get the tag's file.
        ValueError: The weights are of another architecture, or the file needs code to be run.
    """
    paths, described = _find(clip.config, source)
    if described:
        _require_same(clip.config, described, str(source))
    state: dict[str, Tensor] = {}
    for path in paths:
        state |= read_state_dict(path)
    if any(name.startswith("vision_model.") for name in state):
        state = hugging_face.to_open_clip(state)
    found = open_clip_weights.with_text_names(state, custom_text=clip.config.custom_text)
    state, notes = _fitted(clip, found, resize=resize)
    if clip.config.adapter:
        state, more = _with_adapter(clip, state, clip.config)
        notes += more
    open_clip_weights.load(clip, state)
    drawn_anew = [
        name for name in state if name not in found or _is_other(name, found, state, clip)
    ]
    taken = len(state) - len(drawn_anew)
    logger.info("loaded %d of %d tensors from %s", taken, len(state), source)
    return notes


def weight_files(folder: Path) -> list[Path]:
    """Files that hold the weights of a model's folder: one, or the shards that an index names.

    Raises:
        FileNotFoundError: The folder holds no weights, or a shard is missing.
        ValueError: The index of the shards is damaged.
    """
    name = next((name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(
            f"{folder} has no weights: none of {', '.join(_WEIGHT_FILES)} is there"
        )
    if not name.endswith(".index.json"):
        return [folder / name]
    places = _read_json(folder / name)
    places = places.get("weight_map") if isinstance(places, dict) else None
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(shard).name != shard for shard in names):
        raise ValueError(f"{folder / name} is damaged: it names no shards of this folder")
    missing = [shard for shard in names if not (folder / shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}, {len(missing)} of the {len(names)} shards that "
            f"{name} names"
        )
    return [folder / shard for shard in names]


def read_config(folder: Path) -> ClipConfig:
    """Config of the model in a folder.

    Args:
        folder: Holds `open_clip_config.json`, as checkpoints of ours do, or the `config.json`
            of a Hugging Face `CLIPModel`.

    Raises:
        FileNotFoundError: It holds neither.
        ValueError: The file is damaged, or its model cannot be built.
    """
    ours, theirs = folder / OPEN_CLIP_CONFIG, folder / HUGGING_FACE_CONFIG
    try:
        return _config_of(folder, ours, theirs)
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"the config in {folder} is damaged: {error!r}") from error


def require_usual_resize(folder: Path) -> None:
    """Refuses a folder whose pictures are to be brought to size in another way than ours.

    That is: the short side resized bicubically, and the centre cut out, open_clip's usual way.

    Args:
        folder: As for `read_config`.

    Raises:
        ValueError: Its preprocessing is another one, or cannot be read.
    """
    try:
        other = _other_resize(folder)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the config in {folder} is damaged: {error!r}") from error
    if other:
        raise ValueError(f"{folder} wants its pictures with {other}, which is not supported")


def _other_resize(folder: Path) -> dict[str, Any]:
    """What is unusual in a folder's preprocessing; what it does not name is usual."""
    ours, theirs = folder / OPEN_CLIP_CONFIG, folder / HUGGING_FACE_PIXELS
    if ours.is_file():
        pixels = _read_json(ours).get("preprocess_cfg") or {}
        usual = {"interpolation": ("bicubic",), "resize_mode": ("shortest",)}
    elif theirs.is_file():
        pixels = _read_json(theirs)
        usual = {"resample": (_BICUBIC, None), "do_resize": (True,), "do_center_crop": (True,)}
        size = pixels.get("size")
        if isinstance(size, dict) and "shortest_edge" not in size:
            return {"size": size}
    else:
        return {}
    return {
        name: pixels[name] for name in usual if name in pixels and pixels[name] not in usual[name]
    }


def _config_of(folder: Path, ours: Path, theirs: Path) -> ClipConfig:
    if ours.is_file():
        raw = _read_json(ours)
        pixels = raw.get("preprocess_cfg", {})
        mean, std = pixels.get("mean", CLIP_PIXEL_MEAN), pixels.get("std", CLIP_PIXEL_STD)
        return from_open_clip(folder.name, raw["model_cfg"], (tuple(mean), tuple(std)))
    if theirs.is_file():
        path = folder / HUGGING_FACE_PIXELS
        pixels = _read_json(path) if path.is_file() else {}
        mean, std = (
            pixels.get("image_mean", CLIP_PIXEL_MEAN),
            pixels.get("image_std", CLIP_PIXEL_STD),
        )
        raw = _read_json(theirs)
        return hugging_face.from_hugging_face(folder.name, raw, (tuple(mean), tuple(std)))
    raise FileNotFoundError(
        f"{folder} has neither {ours.name} nor {theirs.name}: name a checkpoint folder such as "
        "runs/NAME/checkpoints/step_000001000"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads weights, without running code that a file may hold.

    Args:
        path: A .safetensors file, or one of torch.save with a state dict, alone or under
            `state_dict` as open_clip's trainer writes it.

    Raises:
        OSError: The file is missing or cannot be opened.
        ValueError: It is damaged, holds no state dict, or needs code to be run.
    """
    with path.open("rb"):  # what is missing or forbidden says so itself
        pass
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises KeyError, OSError, MemoryError ...
        raise ValueError(
            f"{path} is damaged, or holds more than tensors (a TorchScript archive or a pickle "
            "that runs code): save its state_dict() alone, best as .safetensors"
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    items = content.items() if isinstance(content, dict) else ()
    if not items or not all(isinstance(n, str) and isinstance(v, Tensor) for n, v in items):
        raise ValueError(f"{path} holds no state dict")
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in content):
            content = {name.removeprefix(wrapper): value for name, value in content.items()}
    return {name: value for name, value in content.items() if name not in _NOT_WEIGHTS}


def _find(config: ClipConfig, source: str | Path) -> tuple[list[Path], ClipConfig | None]:
    """The files with the weights, and the config that they were trained with if it is known."""
    path = Path(source)
    if path.is_dir():
        return weight_files(path), read_config(path)
    if path.is_file():
        return [path], None
    tagged, described = _find_tag(config, str(source))
    return [tagged], described


def _find_tag(config: ClipConfig, tag: str) -> tuple[Path, ClipConfig]:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(config.name)
    if tag not in tags:
        listed = f"open_clip's tags for it are {', '.join(tags)}" if tags else "it has no tags"
        raise FileNotFoundError(
            f"{tag!r} is neither a file nor a folder nor a tag of {config.name!r}; {listed}"
        )
    published = open_clip.get_pretrained_cfg(config.name, tag)
    try:
        path = Path(open_clip.download_pretrained(published))
    except Exception as error:  # the clients of three kinds of servers raise what they like
        raise FileNotFoundError(
            f"open_clip could not get {tag!r} of {config.name!r}, and its cache does not hold it: "
            f"{error}"
        ) from error
    raw = open_clip.get_model_config(config.name)
    assert raw is not None
    raw["quick_gelu"] = published.get("quick_gelu", False)
    return path, from_open_clip(config.name, raw, pixel_statistics(config.name, tag))


def _require_same(config: ClipConfig, described: ClipConfig, source: str) -> None:
    """Shapes are compared when the weights are loaded; here, what no shape shows."""
    problems = _other_encoder(config, described)
    for name in ("vision", "text") if config.has_text_tower else ("vision",):
        ours, theirs = getattr(config, name), getattr(described, name)
        for field in dataclasses.fields(ours):
            values = getattr(ours, field.name), getattr(theirs, field.name)
            if field.name not in _FREE_FIELDS and values[0] != values[1]:
                problems.append(f"{name}.{field.name} is {values[1]!r} there, {values[0]!r} here")
    if problems:
        raise ValueError(
            f"{source} was trained as another model than {config.name!r}: {'; '.join(problems)}; "
            "build the model with those values (for quick-GELU, a name that ends in -quickgelu)"
        )


def _fitted(
    clip: Clip, state: Mapping[str, Tensor], *, resize: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict with names, scalars and position tables as the model has them."""
    config, state = clip.config, dict(state)
    notes = []
    for name in ("logit_scale", "logit_bias"):
        if name in state and state[name].numel() == 1:
            state[name] = state[name].reshape(())
    if clip.logit_bias is not None and "logit_bias" not in state:
        state["logit_bias"] = clip.logit_bias.detach()
        notes.append(f"the source has no logit_bias: it starts at {config.init_logit_bias}")
    image, text = open_clip_weights.image_positions_name(config), "positional_embedding"
    text = f"text.{text}" if config.custom_text else text
    wanted = {image: config.vision.num_positions, text: config.text.context_length}
    for name, rows in wanted.items():
        if not resize or name not in state or state[name].shape[-2] == rows:
            continue
        notes.append(f"{name} was resized from {state[name].shape[-2]} to {rows} rows")
        if name == image:
            vision = config.vision
            state[name] = resize_image_positions(
                state[name], vision.num_patches, class_token=vision.class_token
            )
        else:
            state[name] = resize_text_positions(state[name], rows)
    return state, notes


def _other_encoder(config: ClipConfig, described: ClipConfig) -> list[str]:
    """What keeps the adapter of a source from reading the embeddings of this model."""
    ours, theirs = config.adapter, described.adapter
    if not theirs:
        return []
    if not ours:
        return [f"its text side reads the embeddings of {theirs.encoder}, this one's tokens"]
    return [
        f"adapter.{name} is {getattr(theirs, name)!r} there, {getattr(ours, name)!r} here"
        for name in ("encoder", "embedding_dim", "layers", "mlp_ratio")
        if getattr(ours, name) != getattr(theirs, name)
    ]


def _with_adapter(
    clip: Clip, state: Mapping[str, Tensor], config: ClipConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict of a CLIP, with what a model with an adapter has and without what it lacks."""
    fresh, notes, found = open_clip_weights.dump(clip), [], dict(state)
    if not config.has_text_tower:
        unused = [name for name in found if open_clip_weights.is_text_name(name)]
        found = {name: value for name, value in found.items() if name not in unused}
        if unused:
            notes.append(f"the text tower was left out: {len(unused)} tensors")
    missing = [name for name in fresh if name.startswith("adapter.") and name not in found]
    if missing:
        notes.append("the source has no adapter: a fresh one is trained")
    found |= {name: fresh[name] for name in missing}
    for name in (name for name in _projections(config) if name in found):
        if found[name].shape != fresh[name].shape:
            was, now = list(found[name].shape), list(fresh[name].shape)
            notes.append(f"{name} is {was} there and {now} here: a fresh one is trained")
            found[name] = fresh[name]
    return found, notes


def _is_other(
    name: str, found: Mapping[str, Tensor], state: Mapping[str, Tensor], clip: Clip
) -> bool:
    """Whether a projection of the source gave way to a fresh one of another shape."""
    return name in _projections(clip.config) and found[name].shape != state[name].shape


def _projections(config: ClipConfig) -> tuple[str, ...]:
    text = ("text_projection", "text_projection.weight", "text_projection.bias")
    return ("visual.proj", *(f"text.{name}" if config.custom_text else name for name in text))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON") from error
