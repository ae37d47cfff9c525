"""Which kernels a training step is made of, and how much of it is matrix work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from tessera.tools.benchmarks.train_sides import OwnStep, StepSetting

_KINDS = (
    ("attention", r"flash|fmha|attention|cudnn_sdpa"),
    ("matrix products", r"gemm|cutlass|nvjet|wgmma|xmma|(aten::)(addmm|mm|bmm|linear)$"),
    ("optimiser", r"adam|multi_tensor|foreach|lamb|lion"),
    ("copies", r"memcpy|memset|copy_|aten::(copy_|cat|fill_|zero_)$"),
)
_OTHER = "everything else"
_MATRIX_WORK = ("attention", "matrix products")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernel:
    """One kernel of a device, or one operator on a CPU."""

    name: str
    """As the profiler names it."""
    kind: str
    """What it is for, by its name."""
    seconds: float
    """Of the device, per step."""
    calls: float
    """Per step."""


def kind_of(name: str) -> str:
    """What a kernel is for, as far as its name tells."""
    lowered = name.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, lowered)), _OTHER)


def profile_step(setting: StepSetting, *, num_steps: int, num_warmup: int) -> dict[str, Any]:
    """Profile steps of our side.

    Args:
        setting: of the step; `visible` and `captions` say what its batch holds.
        num_steps: steps that are recorded.
        num_warmup: steps before them.

    Returns:
        Seconds of the device a step, their shares by kind, and the kernels that take most.
    """
    step = OwnStep(setting)
    step.run(num_warmup)
    activities = [ProfilerActivity.CPU]
    if setting.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work = step.run(num_steps)
    kernels = _kernels(profiler, setting.device, num_steps)
    total = sum(kernel.seconds for kernel in kernels)
    kinds = {name: 0.0 for name, _ in _KINDS} | {_OTHER: 0.0}
    for kernel in kernels:
        kinds[kernel.kind] += kernel.seconds / total
    return {
        "busy_s_per_step": total,
        "step_s": sum(work.known["seconds"].values()) / num_steps,
        "share_of_busy": kinds,
        "matrix_work_share": sum(kinds[name] for name in _MATRIX_WORK),
        "num_kernels_per_step": sum(kernel.calls for kernel in kernels),
        "kernels": [
            {
                "name": kernel.name[:120],
                "kind": kernel.kind,
                "ms_per_step": kernel.seconds * 1e3,
                "share": kernel.seconds / total,
                "calls_per_step": kernel.calls,
            }
            for kernel in kernels[:25]
        ],
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The figures as a table, a line each."""
    yield (
        f"{result['busy_s_per_step'] * 1e3:.2f} ms of kernels in a step of "
        f"{result['step_s'] * 1e3:.2f} ms; {result['matrix_work_share']:.1%} is matrix work"
    )
    for kind, share in result["share_of_busy"].items():
        yield f"  {kind:18} {share:6.1%}"
    yield ""
    yield f"{'share':>6} {'ms/step':>9} {'calls':>6}  kernel"
    for kernel in result["kernels"]:
        yield (
            f"{kernel['share']:6.1%} {kernel['ms_per_step']:9.3f} "
            f"{kernel['calls_per_step']:6.0f}  {kernel['name'][:90]}"
        )


def _kernels(profiler: profile, device: str, num_steps: int) -> Sequence[Kernel]:
    """What ran on the device itself, longest first; time is never counted twice."""
    on_cuda = device == "cuda"
    found = []
    for event in profiler.key_averages():
        if on_cuda and event.device_type.name != "CUDA":
            continue  # an operator: its kernels are entries of their own
        seconds = (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6
        if seconds > 0:
            found.append(
                Kernel(
                    name=event.key,
                    kind=kind_of(event.key),
                    seconds=seconds / num_steps,
                    calls=event.count / num_steps,
                )
            )
    return sorted(found, key=lambda kernel: kernel.seconds, reverse=True)
