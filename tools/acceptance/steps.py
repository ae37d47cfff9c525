"""What a visit to a GPU machine runs, in the order of what matters most."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

_FLICKR8K = Path("data/flickr8k/train/index.json")
_REPORTS = ("html", "md", "json")
Part = Literal["correctness", "figures", "training"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command with a time box; nothing depends on it but the steps that read its files."""

    name: str
    """Of its record and its log."""
    part: Part
    """What it belongs to."""
    question: str
    """What it answers."""
    command: tuple[str, ...]
    """Words, run in the checkout."""
    minutes: float
    """Most that it may take."""
    needs: str = ""
    """Program that must be on the PATH, or the step is left out."""
    keeps: tuple[Path, ...] = ()
    """Files that it writes and that stay beside the records, if they are there."""
    shown: str = ""
    """The command as a person would type it."""

    @property
    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        found = not self.needs or shutil.which(self.needs)
        return "" if found else f"{self.needs} is not installed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How large everything is; the dry run's are the least with which every command works."""

    device: Literal["cuda", "cpu"]
    """Where the models run."""
    photos: int
    """Pictures drawn."""
    models: tuple[tuple[str, int], ...]
    """open_clip's names, and pairs of a step of each."""
    precision: str
    """Of the training step."""
    steps: int
    """Timed steps of a turn."""
    repeats: int
    """Counted rounds."""
    mask_batches: str
    """Images that are masked at once."""
    loss_batches: str
    """Pairs of the losses."""
    whole_loss_up_to: int
    """Largest batch whose similarity matrix is held as a whole."""
    run_batch: int
    """Pairs of a step in end-to-end training."""
    run_steps: int
    """Timed steps of it."""
    variants: tuple[str, ...]
    """Recipes that are compared."""
    seeds: tuple[str, ...]
    """Runs of each of them."""


FULL = Sizes(
    device="cuda",
    photos=8192,
    models=(("ViT-B-16", 512), ("ViT-L-14", 128)),
    precision="bfloat16",
    steps=5,
    repeats=5,
    mask_batches="256,1024",
    loss_batches="16384,65536,262144",
    whole_loss_up_to=65536,
    run_batch=1024,
    run_steps=30,
    variants=("clip", "flip-50", "cluster-rgb-03", "cluster-rgb-05", "fill-03"),
    seeds=("0", "1", "2"),
)
"""On a GPU of 80 GB or more."""
DRY = Sizes(
    device="cpu",
    photos=48,
    models=(("ViT-S-32-alt", 4),),
    precision="float32",
    steps=1,
    repeats=1,
    mask_batches="8",
    loss_batches="64,128",
    whole_loss_up_to=64,
    run_batch=16,
    run_steps=2,
    variants=("clip", "flip-50"),
    seeds=("0",),
)
"""Every command once on a CPU; the figures mean nothing."""


def steps(sizes: Sizes, photos: str, scratch: Path) -> list[Step]:
    """All steps of a visit.

    Args:
        sizes: `FULL` or `DRY`.
        photos: INDEX[@SELECTION] of carried photos; empty to draw some.
        scratch: folder for what steps write for each other.
    """
    index = photos or str(scratch / "photos" / "index")
    found = [
        Step(
            name="machine",
            part="correctness",
            question="What machine is this?",
            command=_python("tools/acceptance/machine.py"),
            minutes=1,
        )
    ]
    if not photos:
        found.append(
            Step(
                name="photos",
                part="correctness",
                question="Draw JPEG photos, and index them.",
                command=_python(
                    *("tools/acceptance/draw_photos.py", str(scratch / "photos")),
                    *("--count", str(sizes.photos)),
                ),
                minutes=4,
            )
        )
    found += [*_correctness(), *_figures(sizes, index), *_training(sizes, index, scratch)]
    return [replace(step, shown=_shown(step.command, scratch)) for step in found]


def _correctness() -> list[Step]:
    return [
        Step(
            name="tests-gpu",
            part="correctness",
            question="Does everything compute on the GPU what it computes on the CPU?",
            command=_python("-m", "pytest", "tests/gpu", "-m", "gpu", "-p", "no:cacheprovider"),
            minutes=8,
        ),
        Step(
            name="sanitizer",
            part="correctness",
            question="Do the mask kernels stay within their memory?",
            command=(
                # Inside one large block of torch's cache nothing is out of bounds.
                *("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"),
                *("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"),
                *_python(
                    "-m", "pytest", "tests/gpu/test_masking.py", "-k", "similarity or packing"
                ),
            ),
            minutes=4,
            needs="compute-sanitizer",
        ),
    ]


def _figures(sizes: Sizes, index: str) -> list[Step]:
    on_gpu = sizes.device == "cuda"
    decoders = ("cpu", "cuda") if on_gpu else ("cpu",)
    return [
        *(_compare(sizes, name, batch) for name, batch in sizes.models),
        *(_end_to_end(sizes, index, decoder) for decoder in decoders),
        Step(
            name="profile",
            part="figures",
            question="Which kernels is our step made of?",
            command=_python(
                *("tools/benchmark_train.py", "profile", "--model", sizes.models[0][0]),
                *("--batch-size", str(sizes.models[0][1]), "--precision", sizes.precision),
            ),
            minutes=2,
        ),
        Step(
            name="masks",
            part="figures",
            question="What does the mask cost?",
            command=_python(
                *("tools/benchmark_masks.py", "--device", sizes.device),
                *("--batch-sizes", sizes.mask_batches, "--num-patches", "196"),
                *("--repeats", str(max(2, sizes.repeats))),
            ),
            minutes=2,
        ),
        *(_decode(sizes, index, decoder) for decoder in decoders),
        Step(
            name="loss",
            part="figures",
            question="What does the loss of large batches cost?",
            command=_python(
                *("tools/benchmark_loss.py", "--device", sizes.device),
                *("--batch-sizes", sizes.loss_batches, "--repeats", "2"),
                *("--whole-up-to", str(sizes.whole_loss_up_to)),
            ),
            minutes=3,
        ),
    ]


def _compare(sizes: Sizes, model: str, batch_size: int) -> Step:
    return Step(
        name=f"step-{model.lower()}",
        part="figures",
        question=f"How fast is a training step of {model}, against open_clip's forms?",
        command=_python(
            *("tools/benchmark_train.py", "compare", "--model", model),
            *("--batch-size", str(batch_size), "--precision", sizes.precision),
            *("--steps", str(sizes.steps), "--repeats", str(sizes.repeats)),
            *(() if sizes.device == "cuda" else ("--sides", "open_clip", "ours_50")),
        ),
        minutes=5,
    )


def _end_to_end(sizes: Sizes, index: str, decoder: str) -> Step:
    batch = sizes.run_batch
    return Step(
        name=f"end-to-end-{decoder}-decode",
        part="figures",
        question=f"How fast is training from JPEG files that the {decoder.upper()} decodes?",
        command=_python(
            *("tools/benchmark_train.py", "recipe", "cluster-rgb-03"),
            *("--steps", str(sizes.run_steps), "--warmup", "1" if decoder == "cpu" else "5"),
            *("--data.train", index, "--model", sizes.models[0][0], "--device", sizes.device),
            *("--data.device", decoder, "--batch-size", str(batch)),
            *("--total-samples", str(batch * (2 * sizes.run_steps + 20))),
        ),
        minutes=3,
    )


def _decode(sizes: Sizes, index: str, decoder: str) -> Step:
    return Step(
        name=f"decode-{decoder}",
        part="figures",
        question=f"How fast does the pipeline alone go when the {decoder.upper()} decodes?",
        command=_python(
            *("tools/benchmark_data.py", index, "--device", decoder, "--no-storage"),
            *("--images", str(sizes.photos), "--repeats", str(min(3, sizes.repeats))),
            *("--batch-size", str(min(256, sizes.photos)), "--baselines"),
            *(("dali_reader",) if sizes.device == "cuda" else ()),
            *(("--threads", "16") if sizes.device == "cuda" else ("--threads", "1")),
        ),
        minutes=3,
    )


def _training(sizes: Sizes, index: str, scratch: Path) -> list[Step]:
    base, words = ("flickr8k" if _FLICKR8K.is_file() else "demo"), ()
    if sizes.device == "cpu":
        # A few steps on the drawn photos: the demo would have to draw its own first.
        tiny = "--model tessera-demo --total-samples 32 --batch-size 16 --optim.warmup-samples 16"
        data = ("--data.train", index, "--evaluation.retrieval", index, "--evaluation.zero-shot")
        base, words = "flickr8k", ("--", *tiny.split(), *data)
    return [
        Step(
            name="comparison",
            part="training",
            question="Which recipe learns most from the same samples, and for the same compute?",
            command=_python(
                *("tools/compare.py", "--base", base, "--variants", *sizes.variants),
                *("--seeds", *sizes.seeds, "--jobs", "4" if sizes.device == "cuda" else "1"),
                *("--out", str(scratch / "comparison"), *words),
            ),
            minutes=9.5,
            keeps=tuple(scratch / "comparison" / f"comparison.{kind}" for kind in _REPORTS),
        ),
    ]


def _shown(command: tuple[str, ...], scratch: Path) -> str:
    words = " ".join("python" if word == sys.executable else word for word in command)
    return words.replace(str(scratch), "SCRATCH")


def _python(*words: str) -> tuple[str, ...]:
    return (sys.executable, *words)
