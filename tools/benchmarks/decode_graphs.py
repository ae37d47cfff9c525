"""Which of DALI's graphs decode as Pillow does here, and how fast?

    python tools/benchmarks/decode_graphs.py INDEX

Tries each graph (docs/gpu.md) on some pictures of the index, in a process that may die of it.
Prints a line for each, and the number of sound ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the packages lie in the checkout

from tessera.tools import program  # before all that takes long, for Ctrl-C meanwhile

# isort: split
from tessera.pipeline import LoaderConfig
from tessera.pipeline.decode_device import probe_pictures
from tessera.pipeline.decoding.decoder import DaliGraph
from tessera.pipeline.decoding.gpu_trial import TrialSettings, try_graph
from tessera.pipeline.index.dataset import open_dataset

_TIMED_S = 0.3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns its exit status."""
    return program.run(_try_graphs, argv)


def _try_graphs(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=program.describe(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("index", help="INDEX[@SELECTION] of JPEG files")
    parser.add_argument("--device", default="cuda", help="where DALI decodes: cuda, cuda:1 or cpu")
    parser.add_argument("--graphs", nargs="+", default=get_args(DaliGraph), help="which; all")
    arguments = parser.parse_args(words)
    config = LoaderConfig(batch_size=32)
    pictures = probe_pictures(open_dataset(arguments.index), config)
    settings = TrialSettings(
        device=arguments.device,
        cpu_decoder="auto",
        image_size=config.image_size,
        batch_size=config.batch_size,
        num_threads=config.num_threads,
        timed_s=_TIMED_S,
    )
    trials = [try_graph(graph, pictures, settings) for graph in arguments.graphs]
    for trial in trials:
        print(f"{trial.graph}: {trial.fault or f'{trial.gpu_rate:,.0f} pictures/s'}")
    graphs = {trial.graph: asdict(trial) for trial in trials}
    sound = sum(not trial.fault for trial in trials)
    return {"sound": sound, "graphs": graphs}


if __name__ == "__main__":
    sys.exit(main())
