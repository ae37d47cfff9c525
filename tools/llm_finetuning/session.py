"""A run of the first stage: model, optimiser and data of one rank, step by step, resumable."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tessera.model.losses.ranks import Ranks as LossRanks
from tessera.model.text_encoders import TextEncoder, open_text_encoder
from tessera.model.text_encoders.lora import adapter_tensors, add_lora, restore_adapter, save_lora
from tessera.pipeline.durable import write_text
from tessera.pipeline.file_lock import FileLock, HeldError
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.index.embeddings import open_text_embeddings
from tessera.tools.captioning.checkpoint import choose_dtype
from tessera.tools.llm_finetuning.loss import info_nce
from tessera.tools.llm_finetuning.pairs import PairDraw, Pairs, TextPool
from tessera.tools.llm_finetuning.probe import ProbeScores, probe
from tessera.tools.llm_finetuning.settings import Settings
from tessera.training.checkpoint import (
    OPTIMIZER,
    Checkpoint,
    load_on_all,
    optimizer_tensors,
    remove_unfinished,
    restore_optimizer,
    save,
)
from tessera.training.distributed import Ranks
from tessera.training.optim import build_optimizer, clip_gradients, set_learning_rate
from tessera.training.schedule import learning_rate

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Name of the result's folder, and of the checkpoints' part that holds the same weights."""
_RECORD = "settings.json"
_LOG = "log.jsonl"


class FineTuning:
    """One rank's part of a run."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        """Open everything, and go on from the newest checkpoint if there is one.

        Args:
            settings: of the run.
            ranks: of the run.

        Raises:
            ValueError: the settings do not fit the data, the model or the run in the folder.
            FileNotFoundError: data or model are missing.
            CheckpointError: there are checkpoints and none is whole.
        """
        if settings.batch_size % ranks.world_size:
            raise ValueError(
                f"batch_size {settings.batch_size} must be a multiple of the {ranks.world_size} "
                "ranks"
            )
        self.settings = settings
        self._ranks = ranks
        dataset = open_dataset(settings.index)
        pool = TextPool(dataset, settings.sources)
        self._draw = _pair_draw(settings, dataset, pool)
        probed = open_dataset(settings.probe) if settings.probe else dataset
        self._probe_pool = TextPool(probed, settings.sources) if settings.probe else pool
        self.num_steps = settings.steps or -(-len(pool.sample_ids) // settings.batch_size)
        self._optim = settings.optim(self.num_steps)
        self.encoder = _open_encoder(settings, ranks.device(settings.device))
        self.revision: str = self.encoder.description["revision"]
        self.step = 0
        self.probe_before: ProbeScores | None = None
        identity = {
            "settings": json.loads(json.dumps(settings.identity())),
            "llm": self.revision,
            "index": dataset.index.fingerprint,
            "selection": dataset.selection_fingerprint,
            "probe": probed.index.fingerprint,
            "probe_selection": probed.selection_fingerprint,
            "num_steps": self.num_steps,
        }
        ranks.on_main(lambda: _claim(settings.out, identity))
        ranks.on_main(lambda: remove_unfinished(self.checkpoints))
        self._optimizer = build_optimizer(self.encoder, self._optim)
        self._restore()
        ranks.on_main(lambda: _keep_log(settings.out / _LOG, self.step))
        self._model = _distributed(self.encoder, ranks)
        self._settle_buckets()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.settings.out / "checkpoints"

    def probe(self) -> ProbeScores:
        """The probe as the encoder is now; computed on rank 0."""
        pool, count = self._probe_pool, self.settings.probe_samples
        return self._ranks.on_main(lambda: probe(self.encoder, pool, count))

    def update(self) -> torch.Tensor:
        """Do one step.

        Returns:
            [] the loss of the global batch, on the device; nothing waits for it.
        """
        settings, ranks = self.settings, self._ranks
        # Dropout of a step follows from its number, so a resumed run needs no random state.
        number = (settings.seed << 40) + self.step * ranks.world_size + ranks.rank
        torch.manual_seed(number % 2**64)
        pairs = self._draw.step(self.step, settings.batch_size, ranks.rank, ranks.world_size)
        loss = self._loss(pairs)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self.encoder, settings.max_grad_norm)
        set_learning_rate(self._optimizer, self.rate())
        self._optimizer.step()
        self.step += 1
        return ranks.mean(loss.detach())

    def rate(self) -> float:
        """Learning rate of the next step."""
        size = self.settings.batch_size
        return learning_rate(
            self.step * size, self._optim, batch_size=size, total_samples=self.num_steps * size
        )

    def save(self) -> None:
        """Write a checkpoint, on rank 0."""
        parts = {
            ADAPTER: adapter_tensors(self.encoder.backbone),
            OPTIMIZER: optimizer_tensors(self.encoder, self._optimizer),
        }
        checkpoint = Checkpoint(
            step=self.step,
            parts={
                part: {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
                for part, tensors in parts.items()
            },
            architecture={},
            state={"probe_before": asdict(self.probe_before) if self.probe_before else None},
        )
        self._ranks.on_main(lambda: str(save(self.checkpoints, checkpoint, self.settings.keep)))

    def finish(self) -> None:
        """Write the adapter, on rank 0."""
        folder = self.settings.out / ADAPTER
        self._ranks.on_main(lambda: save_lora(self.encoder.backbone, folder, self.revision))

    def _loss(self, pairs: Pairs) -> torch.Tensor:
        """The loss of this rank's pairs; one pass of the model over all their texts."""
        size, device = len(pairs.queries), self.encoder.device
        texts = [*pairs.queries, *pairs.documents, *pairs.negatives]
        instructions = [self.settings.instruction] * size + [""] * (len(texts) - size)
        vectors = self._vectors(texts, instructions)
        return info_nce(
            vectors[:size],
            vectors[size : 2 * size],
            vectors[2 * size :],
            torch.from_numpy(pairs.sample_ids).to(device),
            torch.from_numpy(pairs.negative_ids).to(device),
            scale=self.settings.scale,
            both_ways=self.settings.both_ways,
            ranks=LossRanks.of(None),
        )

    def _vectors(self, texts: list[str], instructions: list[str]) -> torch.Tensor:
        """[K, E] float32, one for each text, with a graph behind them."""
        batch = self.encoder.tokenise(texts, instructions)
        self._model.train()
        kind = self.encoder.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=_is_bfloat16(self.encoder)):
            return self._model(batch.ids, batch.mask, batch.pooled)

    def _settle_buckets(self) -> None:
        """Let DDP order its buckets now; `training.parallel` says why."""
        if self._ranks.world_size > 1:
            self._vectors(["a"], [""]).sum().backward()
            self.encoder.zero_grad(set_to_none=True)

    def _restore(self) -> None:
        checkpoint = load_on_all(self.checkpoints, self._ranks)
        if checkpoint is None:
            return
        restore_adapter(self.encoder.backbone, checkpoint.part(ADAPTER))
        restore_optimizer(self.encoder, self._optimizer, checkpoint.part(OPTIMIZER))
        self.step = checkpoint.step
        before = checkpoint.state["probe_before"]
        self.probe_before = ProbeScores(**before) if before else None


@contextmanager
def kept_out(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Inside the block, no other run works in a folder.

    Args:
        folder: of the run; made on rank 0 if it is not there.
        ranks: of the run.

    Raises:
        ValueError: another one does; on rank 0.
    """
    with ExitStack() as stack:
        ranks.on_main(lambda: _lock(folder, stack))
        yield


def train(run: FineTuning, ranks: Ranks, stop: Callable[[], bool]) -> dict[str, float]:
    """Do the steps that are left, with a log and checkpoints.

    Args:
        run: where it stands.
        ranks: of the run.
        stop: whether somebody wishes to end; with a checkpoint after the current step.

    Returns:
        Mean losses of the first and the last interval of the log that were trained here.

    Raises:
        RuntimeError: a loss is not finite; on all ranks, and no checkpoint is written then.
    """
    settings = run.settings
    losses: list[float] = []
    start, first_step, total, count = time.perf_counter(), run.step, None, 0
    while run.step < run.num_steps:
        rate = run.rate()
        loss = run.update()
        total, count = loss if total is None else total + loss, count + 1
        wished = ranks.vote(stop(), run.step)
        last = wished or run.step == run.num_steps
        saved = last or run.step % settings.save_every == 0
        if saved or run.step % settings.log_every == 0:
            losses.append(total.item() / count)
            per_step = (time.perf_counter() - start) / (run.step - first_step)
            _require_finite(losses[-1], run.step, count)
            ranks.on_main(partial(_log, run, losses[-1], rate, per_step))
            total, count = None, 0
        if saved:
            run.save()
        if wished:
            break
    ranks.end_votes()
    return {"first": losses[0], "last": losses[-1]} if losses else {}


def _log(run: FineTuning, loss: float, rate: float, seconds_per_step: float) -> None:
    """A line for people and one for programs."""
    pairs_per_s = run.settings.batch_size / seconds_per_step
    minutes = (run.num_steps - run.step) * seconds_per_step / 60
    logger.info(
        "step %d of %d  loss %.4f  lr %.3g  %.1f pairs/s  %.1f min left",
        run.step, run.num_steps, loss, rate, pairs_per_s, minutes,
    )  # fmt: skip
    line = {"step": run.step, "loss": loss, "learning_rate": rate, "pairs_per_s": pairs_per_s}
    with (run.settings.out / _LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _require_finite(loss: float, step: int, count: int) -> None:
    if not math.isfinite(loss):
        raise RuntimeError(
            f"the loss is {loss} in one of the {count} steps up to {step}; the last checkpoint is "
            "from before it: give another --out, with a lower --learning-rate, a longer "
            "--warmup-steps or --precision float32"
        )


def _keep_log(path: Path, step: int) -> None:
    """Drop what was logged beyond the step that a run goes on from: it is done again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        write_text(path, "".join(each for each in whole if json.loads(each)["step"] <= step))


def _open_encoder(settings: Settings, device: torch.device) -> TextEncoder:
    """The model with new adapters, ready to be trained."""
    encoder = open_text_encoder(
        settings.llm,
        max_tokens=settings.max_tokens,
        device=device,
        dtype=choose_dtype(settings.precision, device),
    )
    if settings.gradient_checkpointing:
        backbone: Any = encoder.backbone
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(settings.seed)
    encoder.backbone = add_lora(encoder.backbone, settings.lora)
    return encoder


def _pair_draw(settings: Settings, dataset: Dataset, pool: TextPool) -> PairDraw:
    index, name = dataset.index, settings.hard_negatives
    stores = {s: open_text_embeddings(index, name, s) for s in settings.sources} if name else None
    return PairDraw(
        pool,
        settings.seed,
        index.num_samples,
        embeddings=stores,
        num_candidates=settings.negative_candidates,
    )


def _distributed(encoder: TextEncoder, ranks: Ranks) -> nn.Module:
    """What to call to train: averages gradients over the ranks."""
    if ranks.world_size == 1:
        return encoder
    device = encoder.device
    return DistributedDataParallel(
        encoder, device_ids=[device.index] if device.type == "cuda" else None
    )


def _is_bfloat16(encoder: TextEncoder) -> bool:
    return encoder.description["dtype"] == "bfloat16"


def _lock(folder: Path, stack: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(FileLock((folder / "lock").open("w", encoding="utf-8")))
    except HeldError as error:
        raise ValueError(
            f"another process works in {folder}: wait for it, or give another --out{error.remedy}"
        ) from None


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    """Write down which run this is, or see that the run found in the folder is the same.

    Raises:
        ValueError: it is another one; names what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _RECORD
    if not path.is_file():
        write_text(path, json.dumps(identity, indent=1) + "\n")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    mine = {**identity, **identity["settings"]}
    theirs = {**found, **found["settings"]}
    other = sorted(n for n in mine if n != "settings" and mine[n] != theirs.get(n))
    if other:
        raise ValueError(
            f"{folder} holds a run with another {', '.join(other)}: "
            + "; ".join(f"{name} {theirs.get(name)!r}, now {mine[name]!r}" for name in other)
            + ". Give another --out"
        )
