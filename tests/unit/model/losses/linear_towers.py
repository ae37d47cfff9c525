"""Two linear towers, a drawn data set, and its training: as small as training gets.

The pairs are noisy, so that positives do not simply win.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tessera.model import ContrastiveLoss

NUM_SAMPLES = 26
BATCH = 8
STEPS_PER_PASS = NUM_SAMPLES // BATCH
LEARNING_RATE = 0.5


class Towers(nn.Module):
    """Inputs of 6 numbers to unit features of 5, a logit scale and a bias."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.image = nn.Parameter(torch.randn(6, 5, generator=draw) * 0.5)
        self.text = nn.Parameter(torch.randn(6, 5, generator=draw) * 0.5)
        self.logit_scale = nn.Parameter(torch.tensor(10.0))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            F.normalize(images @ self.image, dim=1),
            F.normalize(texts @ self.text, dim=1),
            self.logit_scale * 1,
            self.logit_bias * 1,
        )


def data(num_texts: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs of both towers, [NUM_SAMPLES, 6] and [NUM_SAMPLES*num_texts, 6]."""
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(NUM_SAMPLES, 6, generator=draw)
    repeated = images.repeat_interleave(num_texts, 0)
    return images, repeated + torch.randn(repeated.shape, generator=draw)


def batch_ids(step: int) -> Tensor:
    """[BATCH] of a pass in its own order; the rest of a pass is left out."""
    draw = torch.Generator().manual_seed(100 + step // STEPS_PER_PASS)
    order = torch.randperm(NUM_SAMPLES, generator=draw)
    return order[step % STEPS_PER_PASS * BATCH :][:BATCH]


@dataclasses.dataclass
class Trained:
    """What a run leaves."""

    losses: list[float]
    parameters: dict[str, Tensor]
    state: dict[str, Tensor]


def train(
    loss: ContrastiveLoss,
    steps: range,
    towers: Towers,
    *,
    num_texts: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Trained:
    """Plain gradient descent, on one rank or, with DistributedDataParallel, on several."""
    wrapped = nn.parallel.DistributedDataParallel(towers) if world_size > 1 else towers
    images, texts = data(num_texts)
    optimizer = torch.optim.SGD(towers.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in steps:
        ids = batch_ids(step).chunk(world_size)[rank]
        features = wrapped(images[ids], texts.unflatten(0, (-1, num_texts))[ids].flatten(0, 1))
        value = (
            loss(
                *features[:3],
                # Keeps the bias in the graph for the losses that have none.
                logit_bias=features[3],
                sample_ids=ids,
                step=step,
            )
            + 0 * features[3]
        )
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        total = value.detach().clone()
        if world_size > 1:
            dist.all_reduce(total)
        losses.append(float(total) / world_size)
    parameters = {name: value.detach().clone() for name, value in towers.named_parameters()}
    return Trained(losses, parameters, loss.state_tensors())
