"""The training steps that are timed: ours, open_clip's, and the padded form of cluster masking.

Shapes: B pairs, N patches of a full image, K patches that the padded form keeps, H heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor, nn

from tessera.model import build_clip, clip_loss
from tessera.model.config import clip_config
from tessera.model.execution import configure
from tessera.tools.benchmarks.peak_memory import forget_peak, peak_memory
from tessera.tools.benchmarks.side import UnavailableError, Work
from tessera.training.config import OptimConfig
from tessera.training.optim import build_optimizer
from tessera.training.precision import TYPES, Precision

KEPT_SHARE = 0.7
"""Tokens that the released code of cluster masking keeps of each image (min_mask_ratio 0.3)."""
_MATRIX = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = {"cpu": 6, "cuda": 40}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSetting:
    """What a side is made with; sent to its process."""

    model: str
    """open_clip's name of the architecture."""
    batch_size: int
    """Pairs of a step."""
    device: Literal["cpu", "cuda"]
    """Where the step runs."""
    precision: Precision
    """See `training.precision`; open_clip's bfloat16 is autocast, and it has no pure one."""
    num_workers: int
    """CPU threads."""
    visible: tuple[int, ...] = ()
    """Visible patches of each image; for our side."""
    captions: tuple[int, ...] = ()
    """Tokens of each caption; for our side."""
    patch_dropout: float = 0.0
    """Share of patches that open_clip drops."""
    compile: bool = False
    """Compile the blocks of our towers."""


class _Step:
    """A model, its optimiser and one batch, trained on again and again."""

    def __init__(self, setting: StepSetting, model: nn.Module) -> None:
        torch.manual_seed(0)
        # GPU memory goes back behind every turn; the step that takes it again is not timed.
        self.ahead = int(setting.device == "cuda")
        self._setting = setting
        self._model = model.to(setting.device).train()
        self._optimizer = build_optimizer(self._model, OptimConfig(learning_rate=1e-5))
        self._clock = _Clock(setting.device)

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image and text features of unit length, and the logit scale."""
        raise NotImplementedError

    def loss(self, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """From features to a scalar."""
        return clip_loss(images, texts, scale)

    def run(self, num_batches: int) -> Work:
        """Take so many steps."""
        forget_peak(self._setting.device)
        for _ in range(num_batches):
            with self._clock.during("forward"), self.types():
                features = self.features()
            with self._clock.during("loss"):
                loss = self.loss(*features)
            with self._clock.during("backward"):
                loss.backward()
            with self._clock.during("optimiser"):
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
            del features, loss
        known = {
            "seconds": self._clock.take(),
            "peak_memory_bytes": peak_memory(self._setting.device),
        }
        return Work(num_images=num_batches * self._setting.batch_size, known=known)

    def close(self) -> None:
        """Nothing runs beside the steps."""

    def types(self) -> AbstractContextManager[object]:
        """In this block the forward pass runs; the types are the model's own affair."""
        return nullcontext()


class OwnStep(_Step):
    """Tessera: packed towers."""

    def __init__(self, setting: StepSetting) -> None:
        """Build the model and a batch of the setting's lengths."""
        clip = build_clip(setting.model)
        compute, residual = TYPES[setting.precision]
        configure(
            clip,
            compute_dtype=compute,
            residual_dtype=residual,
            compile_blocks=setting.compile,
            max_patches=max(setting.visible),
        )
        super().__init__(setting, clip)
        vision = clip.config.vision
        total = sum(setting.visible)
        drawn = [torch.randperm(vision.num_patches)[:n].sort().values for n in setting.visible]
        batch = (
            torch.randint(0, 256, (total, vision.patch_dim), dtype=torch.uint8),
            torch.cat(drawn).int(),
            _offsets(setting.visible),
            torch.randint(1, clip.config.text.vocab_size, (sum(setting.captions),)).int(),
            _offsets(setting.captions),
        )
        self._batch = [part.to(setting.device) for part in batch]

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `_Step.features`."""
        return self._model(*self._batch)


class OpenClipStep(_Step):
    """open_clip as it is: whole float images, captions padded to the context."""

    def __init__(self, setting: StepSetting) -> None:
        """Build the model and a batch.

        Raises:
            UnavailableError: the precision is not one that open_clip trains in.
        """
        if setting.precision == "pure_bfloat16":
            raise UnavailableError("open_clip has no bfloat16 with float32 master weights")
        dropout = setting.patch_dropout
        model = open_clip.create_model(setting.model, force_patch_dropout=dropout or None)
        super().__init__(setting, model)
        self._loss = open_clip.ClipLoss()
        config = clip_config(setting.model)
        side, length = config.vision.image_size, config.text.context_length
        self._images = torch.randn(setting.batch_size, 3, side, side).to(setting.device)
        tokens = torch.randint(1, config.text.vocab_size - 1, (setting.batch_size, length))
        tokens[:, -1] = config.text.vocab_size - 1  # the end token, at which open_clip reads
        self._tokens = tokens.to(setting.device)

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `_Step.features`."""
        images, texts, scale, *_ = self._model(self._images, self._tokens)
        return images, texts, scale

    def types(self) -> AbstractContextManager[object]:
        """open_clip's `--precision amp_bf16`, where the setting is bfloat16."""
        wanted = self._setting.precision == "bfloat16"
        return torch.autocast(self._setting.device, dtype=torch.bfloat16, enabled=wanted)

    def loss(self, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """open_clip's own."""
        return self._loss(images, texts, scale)


class PaddedClusterStep(OpenClipStep):
    """open_clip's model in the shapes of cluster masking's released code.

    Every image is embedded whole, keeps 70% of its patches, and those of them that are masked are
    padding, which attention is told not to look at. The mask has the released shape, [B*H, K+1,
    K+1], but is made once and in the type that attention wants; the released code casts it in
    every block. Which patches are kept is settled beforehand.
    """

    def __init__(self, setting: StepSetting) -> None:
        """Build the model and wrap its image tower."""
        super().__init__(setting)
        clip: Any = self._model
        vision = clip_config(setting.model).vision
        clip.visual = _PaddedTower(clip.visual, vision.heads, setting).to(setting.device)


class _PaddedTower(nn.Module):
    def __init__(self, visual: Any, heads: int, setting: StepSetting) -> None:
        super().__init__()
        num_patches = visual.positional_embedding.shape[0] - 1
        num_kept = kept_patches(num_patches)
        visual.patch_dropout = _Keep(setting.batch_size, num_patches, num_kept)
        visible = torch.tensor(setting.visible).clamp(max=num_kept)
        seen = torch.arange(num_kept + 1) <= visible.unsqueeze(1)
        hidden = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        whole = hidden[:, None, :].expand(-1, num_kept + 1, -1).repeat_interleave(heads, 0)
        self.visual = visual
        self.register_buffer("mask", whole.contiguous(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to [B, d], by the steps of open_clip's VisionTransformer.forward."""
        x = self.visual._embeds(images)  # noqa: SLF001 (its forward takes no mask)
        x = self.visual.transformer(x, attn_mask=self.mask)
        pooled, _ = self.visual._pool(x)  # noqa: SLF001
        return pooled @ self.visual.proj


class _Keep(nn.Module):
    kept: Tensor
    row: Tensor

    def __init__(self, batch_size: int, num_patches: int, num_kept: int) -> None:
        super().__init__()
        kept = torch.rand(batch_size, num_patches).topk(num_kept).indices
        class_first = torch.cat([torch.zeros(batch_size, 1, dtype=torch.int64), kept + 1], dim=1)
        self.register_buffer("kept", class_first, persistent=False)
        self.register_buffer("row", torch.arange(batch_size).unsqueeze(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1+N, W] to [B, 1+K, W]."""
        return x[self.row, self.kept]


def kept_patches(num_patches: int) -> int:
    """Patches that the padded form computes on, of each image."""
    return round(KEPT_SHARE * num_patches)


class MatrixSide:
    """Large square matrix products: the rate that the machine reaches when nothing else is done."""

    ahead = 0

    def __init__(self, setting: StepSetting) -> None:
        """Fill two matrices."""
        dtype = torch.float32 if setting.precision == "float32" else torch.bfloat16
        side = _MATRIX[setting.device]
        self._factors = [torch.randn(side, side, device=setting.device, dtype=dtype) for _ in "ab"]
        self._setting = setting

    def run(self, num_batches: int) -> Work:
        """Multiply them; so many steps are so many times a few products."""
        left, right = self._factors
        products = num_batches * _PRODUCTS[self._setting.device]
        out = left @ right
        _wait(self._setting.device)
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(left, right, out=out)
        _wait(self._setting.device)
        seconds = time.perf_counter() - start
        rate = products * 2 * len(left) ** 3 / seconds
        return Work(num_images=products, known={"flops_per_s": rate})

    def close(self) -> None:
        """Nothing runs beside the products."""


class _Clock:
    """Seconds by activity, of the device; activities follow each other without a gap."""

    def __init__(self, device: str) -> None:
        self._read: Callable[[], Any] = _cuda_event if device == "cuda" else time.perf_counter
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def during(self, activity: str) -> Iterator[None]:
        start = self._read()
        yield
        self._marks.append((activity, start, self._read()))

    def take(self) -> dict[str, float]:
        """What was measured since the last call, once the device is done."""
        _wait(self._device)
        seconds: dict[str, float] = {}
        for activity, start, end in self._marks:
            spent = start.elapsed_time(end) / 1e3 if self._device == "cuda" else end - start
            seconds[activity] = seconds.get(activity, 0.0) + spent
        self._marks.clear()
        return seconds


def _cuda_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _offsets(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()
