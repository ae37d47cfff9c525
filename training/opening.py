"""A run is opened: its data, its model, and the newest checkpoint if there is one."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from torch import nn

from tessera.evaluation.text_features import check_text_features
from tessera.model import Clip, build_clip, load_pretrained, open_clip_weights
from tessera.model.config import ClipConfig
from tessera.model.execution import configure
from tessera.model.losses import ContrastiveLoss, DistillationLoss, build_loss
from tessera.model.losses.ranks import Ranks as LossRanks
from tessera.pipeline import Loader, open_loader
from tessera.pipeline.mixture import Mixture
from tessera.training import checkpoint
from tessera.training.checkpoint import Checkpoint, CheckpointError, CheckpointWriter
from tessera.training.config import TrainConfig
from tessera.training.decoding import settle_decoding
from tessera.training.distributed import Ranks
from tessera.training.ema import WeightAverage
from tessera.training.health import Health
from tessera.training.metrics import StepLog
from tessera.training.optim import build_optimizer
from tessera.training.overlap import overlap_warnings
from tessera.training.parallel import parallelise, second_model
from tessera.training.precision import TYPES, Precision, choose_precision
from tessera.training.run_folder import RunFolder, newest_checkpoint
from tessera.training.run_loader import rank_config
from tessera.training.sample_ids import SampleIdLog
from tessera.training.session import EMA, LORA, LOSS, MASK, Session, decoder_kind, fingerprints
from tessera.training.sides import set_trained, trained_words, with_encoder
from tessera.training.stages import Stage, fit_positions, stage_at, stages_of
from tessera.training.stages import architecture as stage_architecture
from tessera.training.timeline import Timeline
from tessera.training.watch import open_watchers
from tessera.training.watch_steps import SlowSteps, StepClock

logger = logging.getLogger(__name__)


def open_session(
    config: TrainConfig, folder: RunFolder, timeline: Timeline, ranks: Ranks | None = None
) -> Session:
    """Open a run where its newest checkpoint left it: inside a stage, between two, or fresh.

    Args:
        config: of the whole run.
        folder: claimed for this configuration by rank 0.
        timeline: of this process so far; what the checkpoint knows is added to it.
        ranks: of the run; a process alone without.

    Raises:
        CheckpointError: no checkpoint in the folder is whole, or it belongs to other data.
        FileNotFoundError: the index or a shard is missing.
        ValueError: the model is unknown, or the data do not fit the configuration.
    """
    ranks = ranks or Ranks()
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = ranks.device(config.device)
    found = checkpoint.load_on_all(folder.checkpoints, ranks)
    run_config, run_step = config, found.step if found else 0
    stage = stage_at(run_config, run_step)
    config, step = stage.config, run_step - stage.first_step
    architecture = architecture_of(config)
    share = rank_config(config, architecture, ranks, device)
    share = settle_decoding(config, share, ranks, device, found)
    loader = open_loader(config.data.train_sets, replace(share, await_mask_weights=True))
    architecture = with_encoder(architecture, loader)
    adapter, measured = architecture.adapter, config.evaluation
    if adapter:
        ranks.on_main(lambda: check_text_features(adapter, measured, measured.text_encoder))
    _check_decoder(loader, ranks, found)
    precision = _precision(config, device, architecture, found)
    if ranks.is_main:
        _tell_what_is_odd(config, loader)
        logger.info("precision: %s", precision)
    if found:
        trained = config if step else stages_of(run_config)[max(0, stage.number - 2)].config
        _check_same_run(found, loader, with_encoder(architecture_of(trained), loader))
    with timeline.during("building the model"):
        clip, model, loss, optimizer = _build(
            run_config, stage, architecture, ranks, device, loader, found, precision,
            resumed=step > 0,
        )  # fmt: skip
        average = _average(config, clip, ranks, device, loader, precision, found if step else None)
    for activity, seconds in (found.state["seconds"] if found else {}).items():
        timeline.add(activity, seconds)
    loader.seek(step)
    mask_weights = found.part(MASK) if found and step else {}
    mask_step = found.state.get("mask_step", 0) if found and step else 0
    if mask_weights:
        loader.set_patch_embedding(**mask_weights, step=mask_step)
    main = ranks.is_main
    return Session(
        run_config=run_config,
        stage=stage,
        folder=folder,
        ranks=ranks,
        device=device,
        clip=clip,
        model=model,
        loss=loss,
        optimizer=optimizer,
        average=average,
        precision=precision,
        loader=loader,
        log=StepLog(folder.metrics if main else None, resumed_step=run_step),
        sample_ids=SampleIdLog(folder.sample_ids, ranks, resumed_step=run_step)
        if config.log_sample_ids
        else None,
        writer=CheckpointWriter(folder.checkpoints, config.keep_checkpoints) if main else None,
        timeline=timeline,
        clock=StepClock(timeline),
        health=Health(config),
        slow_steps=SlowSteps(config.watch.slow_step, world_size=ranks.world_size),
        watchers=open_watchers(run_config, folder, resumed_step=run_step) if main else [],
        step=step, mask_weights=mask_weights, mask_step=mask_step,
    )  # fmt: skip


def architecture_of(config: TrainConfig) -> ClipConfig:
    """The model of a run, with what its loss needs of it.

    The sigmoid loss needs a bias, and starts from a scale of 10 and a bias of -10 (Zhai et al.
    2023, section 3.2); other losses take the model as its name says.

    Raises:
        ValueError: the model is unknown.
    """
    architecture = stage_architecture(config)
    if config.loss.kind == "siglip" and architecture.init_logit_bias is None:
        return replace(architecture, init_logit_scale=math.log(10), init_logit_bias=-10.0)
    return architecture


def _build(
    run_config: TrainConfig,
    stage: Stage,
    architecture: ClipConfig,
    ranks: Ranks,
    device: torch.device,
    loader: Loader,
    found: Checkpoint | None,
    precision: Precision,
    *,
    resumed: bool,
) -> tuple[Clip, nn.Module, ContrastiveLoss, torch.optim.Optimizer]:
    """The model, what is called to train it, the loss and the optimiser, fresh or as found.

    A stage that begins (found, but not resumed) takes over the weights and what the loss knows.
    """
    config = stage.config
    torch.manual_seed(config.seed)
    clip = build_clip(architecture)
    _configure(clip, config, loader, precision)
    loss = _loss(run_config, stage, loader).to(device)
    # A parameter that gets no gradient would keep the ranks waiting for it.
    clip.logit_scale.requires_grad_(not loss.owns_temperature)
    if clip.logit_bias is not None:
        clip.logit_bias.requires_grad_(config.loss.kind == "siglip")
    if not found and config.init_from:
        for note in load_pretrained(clip, initial_weights(config.init_from)):
            logger.info("%s: %s", config.init_from, note)
    if found:
        open_clip_weights.load(clip, fit_positions(found.part(checkpoint.WEIGHTS), architecture))
        if not found.state["config"].get("text_side", {}).get("distill") or resumed:
            loss.load_state_tensors(found.part(LOSS))
    set_trained(clip, config, found.part(LORA) if found and resumed else None)
    logger.info("%s", trained_words(clip))
    model = parallelise(clip, ranks, device, config.distributed.strategy)
    optimizer = build_optimizer(clip, config.optim)
    if found and resumed:
        checkpoint.restore_optimizer(clip, optimizer, found.part(checkpoint.OPTIMIZER))
    return clip, model, loss, optimizer


def _configure(clip: Clip, config: TrainConfig, loader: Loader, precision: Precision) -> None:
    """Set how a model of this run computes on the loader's batches."""
    compute, residual = TYPES[precision]
    configure(
        clip,
        compute_dtype=compute,
        residual_dtype=residual,
        checkpoint_blocks=config.checkpoint_blocks,
        compile_blocks=config.compile,
        max_patches=config.mask.build().most_visible(loader.config.num_patches),
    )


def _precision(
    config: TrainConfig,
    device: torch.device,
    architecture: ClipConfig,
    found: Checkpoint | None,
) -> Precision:
    """What the run computes in; where it is left open, a resumed run keeps what it began with."""
    stored: Precision | None = found.state.get("precision") if found else None
    if config.precision == "auto" and found:
        # Checkpoints of 0.1 do not have it; there auto was float32 on every CPU.
        return stored or ("bfloat16" if device.type == "cuda" else "float32")
    chosen = choose_precision(config.precision, device, architecture.vision.width)
    if stored and stored != chosen:
        logger.warning("this run computed in %s and continues in %s", stored, chosen)
    if found and not stored and chosen == "bfloat16":
        logger.warning(
            "this run began with version 0.1, whose bfloat16 was autocast: it rounded the image "
            "tower's residual stream and now keeps it in float32, so losses differ slightly"
        )
    return chosen


def initial_weights(source: str) -> str | Path:
    """What `init_from` names: of a run's folder its last checkpoint, anything else as it stands.

    Raises:
        FileNotFoundError: it names a run that has no checkpoint yet.
    """
    return newest_checkpoint(Path(source)) if Path(source).is_dir() else source


def _loss(run_config: TrainConfig, stage: Stage, loader: Loader) -> ContrastiveLoss:
    """The loss of a stage, which counts its passes over the data from the start of the run.

    Not from that of the stage: the estimates of FastCLIP's family are carried on into it, and in
    the first pass each is replaced by that of one batch. A stage that distils has another loss.
    """
    config, pass_size = stage.config, loader.dataset.num_samples
    if config.text_side.distill:
        return DistillationLoss(LossRanks.of(None))
    weights = loader.dataset.weights if isinstance(loader.dataset, Mixture) else (1.0,)
    if config.loss.kind in ("isogclr", "fastclip_v2") and set(weights) != {1.0}:
        raise ValueError(
            f"loss.kind {config.loss.kind} corrects each sample's temperature by the number of "
            "epochs, in each of which the sample comes once: give all training sets the weight 1, "
            "or take fastclip_v3"
        )
    return build_loss(
        config.loss,
        num_samples=loader.index.num_samples,
        steps_per_pass=Fraction(pass_size, config.batch_size),
        passes_before=Fraction(
            sum(
                earlier.config.num_steps * earlier.config.batch_size
                for earlier in stages_of(run_config)[: stage.number - 1]
                if not earlier.config.text_side.distill
            ),
            pass_size,
        ),
    )


def _average(
    config: TrainConfig,
    clip: Clip,
    ranks: Ranks,
    device: torch.device,
    loader: Loader,
    precision: Precision,
    found: Checkpoint | None,
) -> WeightAverage[Clip] | None:
    """The average of the weights as found, or of the present ones; None if the run keeps none."""
    if not config.optim.ema_samples:
        return None
    model = second_model(clip, ranks, device, config.distributed.strategy)
    _configure(model, config, loader, precision)
    average = WeightAverage(clip, model, config.optim.ema_samples)
    if found:
        stored = Clip(clip.config)
        open_clip_weights.load(stored, found.part(EMA))
        average.load(stored.state_dict())
    return average


def _tell_what_is_odd(config: TrainConfig, loader: Loader) -> None:
    """Log the captions, and what a person may not have meant."""
    for line in (
        *overlap_warnings(loader.dataset, config.evaluation),
        *loader.captions.warnings(),
    ):
        logger.warning("%s", line)
    if config.mask.uses_embedding and config.num_steps <= config.mask.embedding_every:
        logger.warning(
            "mask.embedding_every is %d steps, and these are %d: the mask compares patches by the "
            "weights of the first step to the end",
            config.mask.embedding_every,
            config.num_steps,
        )
    for line in loader.captions.describe():
        logger.info("%s", line)


def _check_decoder(loader: Loader, ranks: Ranks, found: Checkpoint | None) -> None:
    """Decoders differ by a few levels of a pixel: enough to end what repeats bit for bit.

    Raises:
        ValueError: this rank decodes with another one than rank 0.
    """
    kind = decoder_kind(loader)
    first = ranks.on_main(lambda: kind)
    if kind != first:
        raise ValueError(
            f"rank {ranks.rank} decodes with {kind} and rank 0 with {first}, whose pixels differ: "
            "set --data.decoder to one that every machine has"
        )
    before = found.state.get("decoder", kind) if found else kind
    if before != kind and ranks.is_main:
        logger.warning(
            "this run decoded with %s and goes on with %s: pixels differ slightly, so its losses "
            "are not those of an unbroken run; --data.decoder chooses one", before, kind,
        )  # fmt: skip


def _check_same_run(found: Checkpoint, loader: Loader, architecture: ClipConfig) -> None:
    before = found.architecture["model_cfg"].get("tessera_adapter")
    adapter = architecture.adapter
    if before and adapter and before["encoder"] != adapter.encoder:
        raise CheckpointError(
            f"the checkpoint of step {found.step} was trained on embeddings of "
            f"{before['encoder']}, and those of this run are of {adapter.encoder}: training cannot "
            "go on. Restore those embeddings, or begin again with --restart"
        )
    for what, now in fingerprints(loader, architecture).items():
        # Checkpoints older than a fingerprint do not have it; the index one is always there.
        before = found.state.get(f"{what}_fingerprint", None if what == "selection" else now)
        if before != now:
            was, found_now = ((name or "of all samples")[:16] for name in (before, now))
            raise CheckpointError(
                f"the checkpoint of step {found.step} was trained with the {what} {was}, but that "
                f"of this run is {found_now} (index {loader.index.directory}): training cannot go "
                f"on. Restore that {what}, or begin again with --restart"
            )
