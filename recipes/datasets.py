"""Indexes that the published recipes train on, and the commands that make them.

The budgets of the recipes are in pairs and taken from the papers. Links die, so a set downloaded
today is smaller: the same budget then makes a few more passes over it.
"""

from __future__ import annotations

from tessera.pipeline.index.dataset import parse_reference
from tessera.training.config import TrainConfig

CC12M = "data/cc12m/index"
"""Conceptual 12M (Changpinyo et al., 2021)."""
CC12M_PAIRS = 10_968_539
"""Pairs of CC12M that Cluster Masking trained on, a pass of its recipes."""
LAION = "data/laion400m/index"
"""LAION-400M (Schuhmann et al., 2021)."""
LAION_PAIRS = 400_000_000
"""Pairs of LAION-400M as FLIP and CLIPA count a pass."""
DATACOMP = "data/datacomp1b/index"
"""DataComp-1B (Gadre et al., 2023)."""
IMAGENET_PASS = 1_281_167
"""Images of ImageNet-1K: the JAX recipes of FLIP and CLIPA count their lengths in passes of it."""

_HOW_TO_MAKE = {
    CC12M: (
        "tools/download_cc12m.sh data/cc12m",
        f"python tools/index_shards.py data/cc12m/shards --out {CC12M} --columns url --sha256",
    ),
    LAION: (
        f"python tools/index_shards.py SHARDS --out {LAION}",
        "where SHARDS is the folder of img2dataset's tar files of LAION-400M",
    ),
    DATACOMP: (
        f"python tools/index_shards.py SHARDS --out {DATACOMP}",
        "where SHARDS is the folder of img2dataset's tar files of DataComp-1B",
    ),
}


def require_index(config: TrainConfig) -> None:
    """Make sure that a recipe's own index is there; other data are the caller's affair.

    Raises:
        FileNotFoundError: it is missing; gives the commands that make it.
    """
    for reference in config.data.train_references:
        folder = parse_reference(reference).index_dir
        commands = _HOW_TO_MAKE.get(folder.as_posix())
        if not commands or (folder / "index.json").is_file():
            continue
        raise FileNotFoundError(
            "\n  ".join(
                [
                    f"there is no index at {folder}; make it with",
                    *commands,
                    "or name one of yours with --data.train, or try the recipe on drawn pictures "
                    "with --mini",
                ]
            )
        )
