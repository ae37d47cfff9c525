"""What a run would be, worked out and checked without starting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tessera.evaluation.text_features import check_text_features
from tessera.model import Clip, load_pretrained
from tessera.pipeline import open_loader
from tessera.pipeline.index.caption_mix import parse_weights
from tessera.pipeline.index.dataset import Dataset
from tessera.pipeline.mixture import Mixture, open_sets
from tessera.training.config import TrainConfig, to_json
from tessera.training.config_differences import changed_fields, flatten, option
from tessera.training.decoding import settle_decoding
from tessera.training.distributed import Ranks
from tessera.training.environment import device_words
from tessera.training.estimate import Tokens, compute_type, matrix_rate, memory_bytes, step_flops
from tessera.training.metrics import duration
from tessera.training.opening import architecture_of, initial_weights
from tessera.training.overlap import overlap_warnings
from tessera.training.run_folder import RunFolder
from tessera.training.run_loader import loader_config, rank_config
from tessera.training.sides import set_trained, trained_words, with_encoder
from tessera.training.stages import Stage, architecture, stages_of
from tessera.training.watch import check_watch

_ASSUMED_TEXT_TOKENS = 20.0
"""Of a caption, where the data are not there to count."""


class DryRun:
    """A run that is looked at: what it would be, and what would end its start."""

    def __init__(self, config: TrainConfig, *, makes_data: bool = False) -> None:
        """Check what a start checks; nothing is written, drawn or downloaded.

        Args:
            config: of the run.
            makes_data: whether the start makes the data where they are missing.

        Raises:
            ValueError: the model is unknown, or sizes do not fit each other.
        """
        self.config = config
        self.stages = stages_of(config)
        self.problems: list[str] = []
        """Why a start would be refused, a sentence each."""
        self.missing = ""
        """Why the training data cannot be looked at; empty if they can."""
        self.doubts: list[str] = []
        """What a start would warn of."""
        self._makes_data = makes_data
        self.device = torch.device("cpu")
        self._dataset: Dataset | Mixture | None = None
        with self._noting():
            self._dataset = open_sets(config.data.train_sets)
        if self._dataset is None and self._missing_file:
            self.missing = self.problems.pop()
        self._check()

    def lines(self, recipe: TrainConfig, *, verbose: bool = False) -> list[str]:
        """The run for a person to read.

        Args:
            recipe: the configuration without what the command line changed.
            verbose: also list all fields.
        """
        changed = changed_fields(recipe, self.config) or ["nothing of the recipe"]
        lines = [f"changed          {changed[0]}", *(f"{'':17}{line}" for line in changed[1:])]
        lines.append(f"device           {self._device_words()}")
        lines += self._model_lines() + self._data_lines()
        if verbose:
            fields = flatten(to_json(self.config))
            lines += ["", *(option(name, value) for name, value in fields.items())]
        return lines

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note what a start would refuse, once."""
        self._missing_file = False
        try:
            yield
        except (ValueError, FileNotFoundError) as error:
            self._missing_file = isinstance(error, FileNotFoundError)
            if str(error) not in self.problems:
                self.problems.append(str(error))

    def _check(self) -> None:
        config = self.config
        with self._noting():
            check_watch(config.watch)
        with self._noting():
            self.device = Ranks().device(config.device)
        with self._noting():
            RunFolder(Path(config.run_dir)).check(config)
        for stage in self.stages:
            with self._noting():
                self._check_stage(stage)
        with self._noting():
            self._check_weights()
        if not self.missing:
            with self._noting():
                self.doubts += config.evaluation.check()

    def _check_stage(self, stage: Stage) -> None:
        config = stage.config
        model = architecture_of(config)
        wanted = rank_config(config, model, Ranks(), self.device)
        if torch.cuda.is_available():
            wanted = replace(wanted, device="cpu")  # the trial of a GPU's decoder is the start's
        else:
            wanted = settle_decoding(config, wanted, Ranks(), self.device, None)
        if self.missing:
            return
        with open_loader(config.data.train_sets, wanted) as loader:
            self.doubts += [d for d in loader.captions.warnings() if d not in self.doubts]
            adapter = with_encoder(model, loader).adapter
            if adapter:
                check_text_features(adapter, config.evaluation, config.evaluation.text_encoder)

    def _check_weights(self) -> None:
        """Read the weights to start from into a model without memory of its own."""
        source = self.config.init_from
        if not source:
            return
        is_tag = not Path(source).exists() and not Path(source).suffix and "/" not in source
        if is_tag:
            import open_clip

            if source in open_clip.list_pretrained_tags_by_model(self.config.model):
                return  # a start takes it from open_clip's cache, or downloads it
        with torch.device("meta"):
            clip = Clip(architecture_of(self.stages[0].config))
        load_pretrained(clip, initial_weights(source))

    def _device_words(self) -> str:
        kind = str(compute_type(self.config)).removeprefix("torch.")
        return f"{device_words(self.device)}, matrix products in {kind}"

    def _model_lines(self) -> list[str]:
        config, first = self.config, self.stages[0]
        model = architecture_of(first.config)
        loader = loader_config(first.config, model)
        share = 0.0 if config.mask.kind == "none" else config.mask.mask_ratio
        visible = round(config.batch_size * loader.num_patches * (1 - share))
        lines = self._parameter_lines()
        lines += [
            f"steps            {config.num_steps:,} of {config.batch_size} pairs: "
            f"{config.num_steps * config.batch_size:,} pairs, of which the warm-up "
            f"{first.config.optim.warmup_pairs(config.total_samples):,}",
            f"tokens per step  {visible:,} visible patches of "
            f"{config.batch_size * loader.num_patches:,}, {config.batch_size} class tokens",
        ]
        lines += [
            f"{s.name}        from step {s.first_step:,}: {s.config.num_steps:,} steps of "
            f"{s.config.batch_size} pairs, mask {s.config.mask.kind}, "
            f"{architecture(s.config).vision.image_size} pixels"
            for s in self.stages[1:]
        ]
        return lines + self._cost_lines()

    def _parameter_lines(self) -> list[str]:
        clip = self._meta_clip(self.stages[0])
        parts = {"image tower": clip.image, "text tower": clip.text, "adapter": clip.adapter}
        sizes = {
            name: sum(p.numel() for p in part.parameters()) / 1e6
            for name, part in parts.items()
            if part
        }
        shown = ", ".join(f"{name} {size:.1f} M" for name, size in sizes.items())
        return [f"parameters       {trained_words(clip)} ({shown})"]

    def _meta_clip(self, stage: Stage) -> Clip:
        with torch.device("meta"):
            clip = Clip(architecture_of(stage.config))
            set_trained(clip, stage.config)
        return clip

    def _cost_lines(self) -> list[str]:
        text = _ASSUMED_TEXT_TOKENS if self._dataset is None else 0.0
        memory, flops = 0, 0.0
        for stage in self.stages:
            config, model = stage.config, architecture_of(stage.config)
            share = 0.0 if config.mask.kind == "none" else config.mask.mask_ratio
            length = text or self._mean_length(model.text.context_length)
            texts = self._texts_per_image()
            tokens = Tokens(image=1 + model.vision.num_patches * (1 - share), text=length * texts)
            memory = max(memory, memory_bytes(config, self._meta_clip(stage), tokens))
            flops += config.num_steps * step_flops(config, model, tokens)
        if self.config.num_threads:
            torch.set_num_threads(self.config.num_threads)
        rate = matrix_rate(self.device, compute_type(self.config))
        return [
            f"memory           about {memory / 2**30:.1f} GiB for one process: weights, "
            "gradients, optimiser and activations (estimated)",
            f"time             at least {duration(flops / rate)} on this device: "
            f"{flops / 1e15:,.2f} PFLOP at the {rate / 1e12:.2f} TFLOP/s of a matrix product "
            "measured just now; a run takes 1.5 to 4 times that",
        ]

    def _data_lines(self) -> list[str]:
        if self._dataset is None:
            if self._makes_data:
                return ["data             not there yet: the start makes them"]
            return [f"data             not there yet: {self.missing}"] if self.missing else []
        dataset, config = self._dataset, self.config
        length = self._mean_length(architecture(config).text.context_length)
        epochs = config.num_steps * config.batch_size / dataset.num_samples
        chosen = f" of {dataset.index.num_samples:,}" if dataset.selection_fingerprint else ""
        lines = [
            f"                 about {length * config.batch_size:,.0f} text tokens "
            f"({length:.1f} a caption)",
            f"data             {dataset.num_samples:,}{chosen} samples in "
            f"{len(dataset.index.shards)} shards: {epochs:.1f} epochs",
        ]
        with self._noting():
            self.doubts += overlap_warnings(dataset, config.evaluation)
        return lines + [f"warning          {line}" for line in self.doubts]

    def _mean_length(self, context_length: int) -> float:
        """Mean tokens of a caption as it is served, start and end included."""
        total = weights = 0.0
        for name, weight in parse_weights(self.config.data.captions):
            total += weight * _mean_tokens(self._dataset, name, context_length)
            weights += weight
        return total / weights

    def _texts_per_image(self) -> float:
        data = self.config.data
        return sum(w for _, w in parse_weights(data.captions)) if data.every_text else 1.0


def _mean_tokens(dataset: Dataset | Mixture | None, source: str, context_length: int) -> float:
    if isinstance(dataset, Mixture):
        means = [_mean_tokens(part, source, context_length) for part in dataset.parts]
        return float(np.average(means, weights=dataset.quotas))
    try:
        if dataset is None:
            return _ASSUMED_TEXT_TOKENS
        table = dataset.index.captions(source)
    except (ValueError, FileNotFoundError):  # told by the check of the stage
        return _ASSUMED_TEXT_TOKENS
    lengths = np.diff(table.token_offsets)
    if dataset.rows is not None:
        lengths = lengths[table.rows(dataset.rows.astype(np.int64))[0]]
    return float(np.minimum(lengths + 2, context_length).mean()) if len(lengths) else 2.0
