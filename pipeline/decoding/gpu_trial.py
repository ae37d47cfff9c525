"""A trial of the GPU decoder, in a process that may die of it.

Libraries and GPUs exist whose JPEG decoder ends the process, hangs or returns wrong pictures, and
on some machines the CPU decodes faster. So before a run decodes on a GPU, a child process decodes
some of its pictures there, compares them with Pillow's, and times both decoders. The child runs
`python -m tessera.pipeline.decoding.gpu_trial`: it reads its arguments as JSON on its standard
input, and writes a line of JSON.

Legend: B pictures.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.pipeline.decoding import DecoderKind
from tessera.pipeline.decoding.choice import open_decoder
from tessera.pipeline.decoding.decoder import DaliGraph, Decoder
from tessera.pipeline.decoding.jpeg_walk import plain_jpeg

LEAST_DECIBELS = 36.0
"""A picture that is farther from Pillow's (peak signal to noise ratio) is a wrong one. Sound
decoders stay above 45; colours that are repeated in place of interpolated ones, about 38."""
PATIENCE_S = 120.0
"""A child that has not answered after so many seconds hangs."""
_ROOT = Path(__file__).parents[3]  # of tessera/pipeline/decoding
_COMMAND = (sys.executable, "-m", "tessera.pipeline.decoding.gpu_trial")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialPictures:
    """What a trial decodes."""

    encoded: list[bytes]
    """B files; first those that are timed."""
    windows: NDArray[np.int32]
    """[B, 4] (y, x, height, width) in the upright picture."""
    num_typical: int
    """So many are timed; the others are there because a decoder could be wrong on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSettings:
    """How the run decodes."""

    device: str
    """Where DALI decodes: cuda, cuda:1, or cpu to try the trial itself."""
    cpu_decoder: DecoderKind
    """What decodes on the CPU."""
    image_size: int
    """S, in pixels."""
    batch_size: int
    """Pictures in one call."""
    num_threads: int
    """CPU threads of either decoder."""
    timed_s: float = 1.0
    """For so many seconds each decoder is timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of it."""

    graph: DaliGraph
    """How DALI was asked for the windows."""
    fault: str = ""
    """Why it cannot be used; empty if every picture is as Pillow decodes it."""
    hung: bool = False
    """Whether it had to be killed: others would cost as much time again."""
    num_pictures: int = 0
    """Pictures that were compared."""
    gpu_rate: float = 0.0
    """Pictures a second."""
    cpu_rate: float = 0.0
    """Pictures a second by the CPU decoder."""


def find_graph(
    pictures: TrialPictures,
    settings: TrialSettings,
    *,
    command: Sequence[str] = _COMMAND,
    timeout_s: float = PATIENCE_S,
) -> Trial:
    """Try DALI's graphs, the fastest first, until one decodes like Pillow.

    Args:
        pictures: of the run.
        settings: of the run.
        command: the child's.
        timeout_s: for each child.

    Returns:
        The first trial without a fault. If there is none: the last one, with the faults of all.
    """
    faults: list[str] = []
    trial = Trial(graph="window", fault="none of the pictures could be read")
    if not pictures.encoded:
        return trial
    for graph in get_args(DaliGraph):
        trial = try_graph(graph, pictures, settings, command=command, timeout_s=timeout_s)
        if not trial.fault:
            return trial
        faults.append(f"{graph}: {trial.fault}")
        if trial.hung:
            break
    return Trial(graph=trial.graph, fault="; ".join(faults), hung=trial.hung)


def try_graph(
    graph: DaliGraph,
    pictures: TrialPictures,
    settings: TrialSettings,
    *,
    command: Sequence[str] = _COMMAND,
    timeout_s: float = PATIENCE_S,
) -> Trial:
    """Let a child process decode the pictures; whatever becomes of the child is an answer."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            command,
            input=_to_json(graph, pictures, settings),
            capture_output=True,
            timeout=timeout_s,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(graph=graph, fault=f"no answer in {timeout_s:.0f} s", hung=True)
    except OSError as error:
        return Trial(graph=graph, fault=f"the trial could not be started: {error}")
    if done.returncode < 0:
        return Trial(graph=graph, fault=f"the process ended by {_signal_name(-done.returncode)}")
    try:
        return Trial(graph=graph, **json.loads(done.stdout.decode().splitlines()[-1]))
    except (ValueError, LookupError, TypeError):
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        detail = f": {last[0][:200]}" if last else ""
        return Trial(graph=graph, fault=f"the process ended with status {done.returncode}{detail}")


def examine(graph: DaliGraph, pictures: TrialPictures, settings: TrialSettings) -> Trial:
    """Decode the pictures in this process, compare them with Pillow's, and time both decoders."""
    if not any(map(plain_jpeg, pictures.encoded)):
        return Trial(graph=graph, fault="no picture is a plain JPEG, and DALI gets no others")

    def opened(kind: DecoderKind, device: str = "cpu") -> Decoder:
        return open_decoder(
            kind,
            image_size=settings.image_size,
            batch_size=settings.batch_size,
            num_threads=settings.num_threads,
            device=device,
            graph=graph,
        )

    decoder = opened("dali", settings.device)
    fault = _difference(decoder, opened("pil"), pictures, settings.batch_size)
    if fault:
        return Trial(graph=graph, fault=fault)
    return Trial(
        graph=graph,
        num_pictures=len(pictures.encoded),
        gpu_rate=_rate(decoder, pictures, settings),
        cpu_rate=_rate(opened(settings.cpu_decoder), pictures, settings),
    )


def _difference(decoder: Decoder, pillow: Decoder, pictures: TrialPictures, batch_size: int) -> str:
    """What is wrong with the decoder's pictures; empty if nothing is."""
    wrong, lowest = 0, np.inf
    for start in range(0, len(pictures.encoded), batch_size):
        part = slice(start, start + batch_size)
        files, windows = pictures.encoded[part], pictures.windows[part]
        found, expected = decoder.decode(files, windows), pillow.decode(files, windows)
        if found.fallback:
            return found.fallback
        error = (found.images.cpu().double() - expected.images).square().mean(dim=(1, 2, 3))
        decibels = 10 * torch.log10(255**2 / error.clamp_min(1e-9))
        for place in expected.failures.keys() | found.failures.keys():
            agree = place in expected.failures and place in found.failures
            decibels[place] = np.inf if agree else 0.0
        wrong += int((decibels < LEAST_DECIBELS).sum())
        lowest = min(lowest, float(decibels.min()))
    if not wrong:
        return ""
    return (
        f"{wrong} of {len(pictures.encoded)} pictures differ from Pillow's, the worst by "
        f"{lowest:.0f} dB"
    )


def _rate(decoder: Decoder, pictures: TrialPictures, settings: TrialSettings) -> float:
    """Pictures a second, in batches of the run's size."""
    places = np.arange(settings.batch_size) % pictures.num_typical
    files, windows = [pictures.encoded[place] for place in places], pictures.windows[places]
    decoder.decode(files, windows)
    _finish(settings.device)
    start, num_batches = time.perf_counter(), 0
    while not num_batches or time.perf_counter() - start < settings.timed_s:
        decoder.decode(files, windows)
        num_batches += 1
    _finish(settings.device)
    return num_batches * len(files) / (time.perf_counter() - start)


def _finish(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _to_json(graph: DaliGraph, pictures: TrialPictures, settings: TrialSettings) -> bytes:
    files = [base64.b64encode(data).decode() for data in pictures.encoded]
    content = {
        "graph": graph,
        "settings": asdict(settings),
        "encoded": files,
        "windows": pictures.windows.tolist(),
        "num_typical": pictures.num_typical,
    }
    return json.dumps(content).encode()


def _from_json(data: bytes) -> tuple[DaliGraph, TrialPictures, TrialSettings]:
    content = json.loads(data)
    pictures = TrialPictures(
        encoded=[base64.b64decode(file) for file in content["encoded"]],
        windows=np.array(content["windows"], dtype=np.int32).reshape(-1, 4),
        num_typical=content["num_typical"],
    )
    return content["graph"], pictures, TrialSettings(**content["settings"])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    """The child."""
    trial = asdict(examine(*_from_json(sys.stdin.buffer.read())))
    del trial["graph"]
    sys.stdout.write(json.dumps(trial) + "\n")


if __name__ == "__main__":
    main()
