"""Where a run decodes its pictures, where it was left open (`device auto`).

With CUDA the GPU decoder is tried on some of the run's pictures first (`decoding.gpu_trial`), and
taken if it decodes them like Pillow and faster than the CPU. The choice belongs to the run: pixels
differ a little between decoders, so a run that goes on keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.pipeline.crops import DRAWS_PER_WINDOW, draw_windows
from tessera.pipeline.decoding.decoder import DaliGraph
from tessera.pipeline.decoding.gpu_trial import Trial, TrialPictures, TrialSettings, find_graph
from tessera.pipeline.decoding.jpeg_walk import JpegLayoutError, walk_jpeg
from tessera.pipeline.index import Index
from tessera.pipeline.index.dataset import Dataset, open_dataset
from tessera.pipeline.loader_config import LoaderConfig
from tessera.pipeline.reader import ShardReader
from tessera.pipeline.storage import is_remote

logger = logging.getLogger(__name__)

_LOOKED_AT = 256
"""So many pictures are read in search of odd ones; of remote shards, `_TYPICAL`."""
_TYPICAL = 48
_ODD_OF_A_KIND = 6
_MOST_TIMED = 512

Prober = Callable[[TrialPictures, TrialSettings], Trial]
"""What tries the GPU decoder: `decoding.gpu_trial.find_graph`, or a test's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeDevice:
    """Where pictures are decoded, and how DALI does it there."""

    device: Literal["cpu", "cuda"]
    """`cuda` is DALI's GPU decoder."""
    graph: DaliGraph = "window"
    """How DALI is asked for the windows."""
    reason: str = ""
    """Why, for the log."""

    def stored(self) -> dict[str, str]:
        """For a checkpoint."""
        return {"device": self.device, "graph": self.graph}

    @staticmethod
    def restored(state: dict[str, Any]) -> DecodeDevice:
        """From the state of a checkpoint.

        One that is older than the choice names its decoder only; its runs had to ask for the GPU.
        """
        found = state.get("decoding") or {}
        old = "cuda" if str(state.get("decoder", "")).startswith("dali-cuda") else "cpu"
        graph: DaliGraph = "window"
        if found.get("graph") in get_args(DaliGraph):
            graph = found["graph"]
        return DecodeDevice(
            device="cuda" if found.get("device", old) == "cuda" else "cpu",
            graph=graph,
            reason="as this run decoded before",
        )


def choose_device(trials: Sequence[Trial], *, by_speed: bool = True) -> DecodeDevice:
    """Where all processes of a run decode, given the trials of its machines.

    Args:
        trials: one of each machine.
        by_speed: whether the CPU decoder is taken where it is faster than the GPU's.
    """
    for trial in trials:
        if trial.fault:
            reason = f"the GPU decoder cannot be used here ({trial.fault})"
            return DecodeDevice(device="cpu", reason=reason)
    graph = trials[0].graph
    if any(trial.graph != graph for trial in trials):
        reason = "the GPU decoders of this run's machines do not work alike"
        return DecodeDevice(device="cpu", reason=reason)
    # All ranks wait for the slowest.
    gpu, cpu = min(t.gpu_rate for t in trials), min(t.cpu_rate for t in trials)
    rates = (
        f"GPU {gpu:,.0f} pictures/s, CPU {cpu:,.0f}; {trials[0].num_pictures} pictures as Pillow "
        "decodes them"
    )
    device = "cpu" if by_speed and cpu > gpu else "cuda"
    return DecodeDevice(device=device, graph=graph, reason=rates)


def probe_device(
    dataset: Dataset | Path | str, config: LoaderConfig, *, probe: Prober = find_graph
) -> Trial:
    """Try the GPU decoder of this machine on some of the run's pictures; takes some seconds.

    Args:
        dataset: opened, or `INDEX` or `INDEX@SELECTION`.
        config: of the loader; where its device is a GPU, that one is tried.
        probe: what tries it.

    Raises:
        FileNotFoundError: no index or selection there.
        ValueError: the index or the selection is damaged.
    """
    opened = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    return probe(
        probe_pictures(opened, config),
        TrialSettings(
            device=config.device if config.device.startswith("cuda") else "cuda",
            cpu_decoder="auto",
            image_size=config.image_size,
            batch_size=min(config.local_batch_size, _MOST_TIMED),
            num_threads=config.num_threads,
        ),
    )


def settle_device(
    dataset: Dataset, config: LoaderConfig, *, probe: Prober = find_graph
) -> LoaderConfig:
    """The configuration with a device in place of `auto`, for a process alone.

    Without CUDA, and with a decoder that works on the CPU only, that is the CPU, at no cost. Where
    batches are handed out does not depend on the choice: on the GPU if there is one.
    """
    if config.device != "auto":
        return config
    if not torch.cuda.is_available():
        return replace(config, device="cpu")
    model_device = config.model_device or "cuda"
    chosen = DecodeDevice(device="cpu", reason=f"decoder {config.decoder} works there only")
    if config.decoder in ("auto", "dali"):
        chosen = choose_device([probe_device(dataset, config, probe=probe)])
    logger.info("pictures are decoded on %s: %s", chosen.device, chosen.reason)
    return replace(config, device=chosen.device, dali_graph=chosen.graph, model_device=model_device)


def probe_pictures(dataset: Dataset, config: LoaderConfig) -> TrialPictures:
    """Pictures of a data set: typical ones, the largest, the smallest, turned and odd ones.

    Those of remote shards are fewer, and each is read by its own bytes.
    """
    index = dataset.index
    remote = any(is_remote(shard.location) for shard in index.shards)
    places = np.linspace(
        0, dataset.num_samples - 1, min(dataset.num_samples, _TYPICAL if remote else _LOOKED_AT)
    )
    rows = _rows(dataset, places.astype(np.int64))
    area = dataset.of_samples(index.width).astype(np.int64) * dataset.of_samples(index.height)
    odd = np.flatnonzero(dataset.of_samples(index.plain) == 0)[:_ODD_OF_A_KIND]
    telling = np.concatenate([[area.argmin(), area.argmax()], odd]).astype(np.int64)
    rows = np.concatenate([_rows(dataset, telling), rows])
    files = _read(index, rows, config.num_threads)
    typical = [row for row in rows[-len(places) :].tolist() if row in files]
    typical = typical[:: max(1, len(typical) // _TYPICAL)][:_TYPICAL]
    chosen = [*typical, *(row for row in _telling(files) if row not in typical)]
    ids = np.array(chosen, dtype=np.int64)
    draws = np.random.default_rng(config.seed).random((len(ids), DRAWS_PER_WINDOW))
    return TrialPictures(
        encoded=[files[row] for row in chosen],
        windows=draw_windows(index.width[ids], index.height[ids], draws, config.crop),
        num_typical=len(typical),
    )


def _rows(dataset: Dataset, places: NDArray[np.int64]) -> NDArray[np.int64]:
    return places if dataset.rows is None else dataset.rows[places].astype(np.int64)


def _read(index: Index, rows: NDArray[np.int64], num_threads: int) -> dict[int, bytes]:
    reader = ShardReader(index, num_threads)
    try:
        read = reader.read(rows)
    finally:
        reader.close()
    pairs = zip(rows.tolist(), read, strict=True)
    return {row: data for row, data in pairs if isinstance(data, bytes)}


def _telling(files: dict[int, bytes]) -> list[int]:
    """Rows of the pictures that a decoder could be wrong on; the extremes come first."""
    kinds: dict[str, list[int]] = {"extreme": list(files)[:2]}
    for row, data in files.items():
        try:
            layout = walk_jpeg(data)
        except JpegLayoutError:
            kind = "no JPEG"
        else:
            kind = f"turned {layout.orientation}, {layout.components} colours"
            kind = kind if layout.is_plain else "odd JPEG"
        kinds.setdefault(kind, []).append(row)
    return list(dict.fromkeys(row for rows in kinds.values() for row in rows[:_ODD_OF_A_KIND]))
