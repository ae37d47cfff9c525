"""One model on several ranks: DDP keeps it whole on each, FSDP2 keeps a part of it on each.

Both average gradients over the ranks, so a loss whose mean over ranks is the loss of the global
batch trains as on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from tessera.model import Clip
from tessera.training.distributed import Ranks

Strategy = Literal["ddp", "fsdp"]

_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)
"""DDP's option to copy rank 0's buffers before every forward pass. torch 2.13 renamed it and warns
of the earlier name; 2.11 and 2.12 know no other."""


def parallelise(clip: Clip, ranks: Ranks, device: torch.device, strategy: Strategy) -> nn.Module:
    """Spread a model over the ranks and move it to their devices.

    Args:
        clip: the same weights on every rank, in host memory; changed in place by fsdp.
        ranks: of the run; alone, the model is only moved.
        device: of this rank.
        strategy: ddp or fsdp.

    Returns:
        What to call in place of `clip` to train: a wrapper for ddp, `clip` itself otherwise.
    """
    if ranks.world_size == 1:
        return clip.to(device)
    if strategy == "fsdp":
        _shard(clip, init_device_mesh(device.type, (ranks.world_size,)))
        return clip
    clip.to(device)
    constant_buffers: dict[str, Any] = {_SYNC_BUFFERS: False}
    wrapped = DistributedDataParallel(
        clip,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **constant_buffers,
    )
    with torch.compiler.set_stance("force_eager"):
        _settle_buckets(wrapped, device)
    return wrapped


def second_model(clip: Clip, ranks: Ranks, device: torch.device, strategy: Strategy) -> Clip:
    """A model of the same architecture, spread over the ranks as `clip` is, that is not trained.

    Its weights are for the caller to set; `configure` sets how it computes.

    Args:
        clip: of `parallelise`.
        ranks: as given to `parallelise`.
        device: as given to `parallelise`.
        strategy: as given to `parallelise`.
    """
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and thrown away
        copy = Clip(clip.config)
    copy.requires_grad_(False)
    if isinstance(clip, FSDPModule):
        return bare(parallelise(copy, ranks, device, strategy))
    return copy.to(device)


def bare(model: nn.Module) -> Clip:
    """The model inside what `parallelise` returned."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, Clip)
    return inner


@contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Inside the block, gradients add up on each rank and are not averaged."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


def local(scalar: Tensor) -> Tensor:
    """A scalar of the model as a plain tensor; its gradients are averaged over ranks."""
    if isinstance(scalar, DTensor):
        return scalar.to_local(grad_placements=[Partial("avg")])
    return scalar


def whole(tensor: Tensor) -> Tensor:
    """A tensor of the model or optimiser with all its rows; every rank must ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(whole_tensor: Tensor, pattern: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole.

    Args:
        whole_tensor: all rows.
        pattern: a parameter of the same shape, spread as the result shall be.
    """
    if isinstance(pattern, DTensor) and whole_tensor.shape == pattern.shape:
        return distribute_tensor(
            whole_tensor.to(pattern.device),
            pattern.device_mesh,
            pattern.placements,
            src_data_rank=None,
        )
    return whole_tensor


def whole_clip(clip: Clip, on_this_rank: bool) -> Clip | None:
    """A copy with all weights, of a model whose weights may be spread over ranks.

    Args:
        clip: of `parallelise`; every rank must ask.
        on_this_rank: whether this rank wants it.
    """
    if not isinstance(clip, FSDPModule):
        return clip if on_this_rank else None
    weights = {name: whole(value).cpu() for name, value in clip.state_dict().items()}
    if not on_this_rank:
        return None
    copy = Clip(clip.config)
    copy.load_state_dict(weights)
    return copy.to(clip.logit_scale.device)


def state_on_host(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """A copy in host memory of tensors that may be spread over ranks.

    Args:
        state: by name; every rank must ask, in the same order.
        keep: whether this rank wants them; the others get an empty dict.
    """
    found = {}
    for name, value in state.items():
        full = whole(value)
        if keep:
            found[name] = full.to("cpu", copy=True).contiguous()
    return found


def _shard(clip: Clip, mesh: DeviceMesh) -> None:
    """FSDP2: each block is gathered when it runs and let go of after it.

    Blocks travel in the type that they compute in, half the bytes of float32 in bfloat16: they
    would cast their weights to it anyway. Gradients are averaged in float32. What stands outside
    the blocks is added to the residual stream, so it travels as it is.

    Scalars cannot be cut; they stay whole on each rank as replicated DTensors, so that optimisers
    and norms meet one kind of tensor only.
    """
    scalars: set[nn.Parameter] = set()
    for name, value in list(clip.named_parameters(recurse=False)):
        if value.ndim == 0:
            spread = distribute_tensor(value.detach(), mesh, [Replicate()], src_data_rank=None)
            scalar = nn.Parameter(spread, requires_grad=value.requires_grad)
            if scalar.requires_grad:
                scalar.register_post_accumulate_grad_hook(_average)
            setattr(clip, name, scalar)
            scalars.add(scalar)
    for tower in clip.towers:
        policy = MixedPrecisionPolicy(
            param_dtype=tower.execution.compute_dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # the residual stream keeps its type
        )
        for block in tower.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(clip, mesh=mesh, ignored_params=scalars)
    for method in ("encode_image", "encode_text", "encode_embeddings"):
        register_fsdp_forward_method(clip, method)


def _average(scalar: Tensor) -> None:
    assert isinstance(scalar.grad, DTensor)
    scalar.grad = scalar.grad.redistribute(placements=[Replicate()])


def _settle_buckets(model: DistributedDataParallel, device: torch.device) -> None:
    """Let DDP order its buckets now, by one pass over one made-up pair.

    DDP orders them by the first backward pass of a process. The order decides which partial sums
    are added first, so a resumed run would round its first step otherwise than the unbroken one.
    The pass runs in the model's types, and nothing is compiled for a batch that never comes again.
    """
    clip = bare(model)
    patch_dim, adapter = clip.config.vision.patch_dim, clip.config.adapter
    images, texts, scale = model(
        torch.zeros(1, patch_dim, dtype=torch.uint8, device=device),
        torch.zeros(1, dtype=torch.int32, device=device),
        torch.tensor([0, 1], dtype=torch.int32, device=device),
        torch.zeros(2, dtype=torch.int32, device=device),
        torch.tensor([0, 2], dtype=torch.int32, device=device),
        torch.zeros(1, adapter.embedding_dim, device=device) if adapter else None,
    )
    total = images.sum() + texts.sum() + scale
    if clip.logit_bias is not None:
        total = total + clip.logit_bias
    total.backward()
    model.zero_grad(set_to_none=True)
