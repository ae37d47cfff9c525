"""Ready-made shards in place of a crawl: CC12M as it was in 2021, from a folder or the hub.

About 62 % of CC12M's links are alive today. `pixparse/cc12m-wds` on the Hugging Face hub holds a
crawl of 2021: 10,968,539 pairs (88.3 %) in 2,176 tars, the count that the papers trained on. What
is in the tars, and whether one is cut short, is checked when they are indexed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

REPOSITORY = "pixparse/cc12m-wds"
EXPECTED_SAMPLES = 10_968_539
EXPECTED_SHARDS = tuple(f"cc12m-train-{number:04d}.tar" for number in range(2176))


def take_mirror(
    source: Path | None, shards: Path, *, allow_missing: bool = False
) -> dict[str, Any]:
    """Put ready-made shards where the index is made from. May be repeated, and resumes.

    Args:
        source: a local copy of the mirror, whose tars are linked; None fetches them from the hub.
        shards: folder for the tars, about 1.1 TB for CC12M.
        allow_missing: take a part of the set.

    Returns:
        `shards`, `source`, `num_shards`, `num_bytes`, `num_expected_samples` and `missing`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: tars are missing; the message names them.
    """
    shards.mkdir(parents=True, exist_ok=True)
    if source is None:
        from huggingface_hub import snapshot_download

        patterns = ["*.tar", "*info.json"]
        snapshot_download(
            REPOSITORY, repo_type="dataset", local_dir=shards, allow_patterns=patterns
        )
    elif not source.is_dir():
        raise FileNotFoundError(f"there is no folder {source}")
    place = source.resolve() if source else shards
    found = [name for name in EXPECTED_SHARDS if (place / name).is_file()]
    missing = sorted({*EXPECTED_SHARDS} - {*found})
    if not found or (missing and not allow_missing):
        raise ValueError(
            f"{len(missing)} of {len(EXPECTED_SHARDS)} tars are missing in {place} "
            f"({', '.join(missing[:3])} …): fetch them, or take a part with --allow-missing"
        )
    if strangers := {path.name for path in shards.glob("*.tar")} - {*EXPECTED_SHARDS}:
        raise ValueError(f"{shards} holds other tars ({min(strangers)} …): name another folder")
    for name in found if source else ():
        (shards / name).unlink(missing_ok=True)
        (shards / name).symlink_to(place / name)
    return {
        "shards": str(shards),
        "source": str(source or REPOSITORY),
        "num_shards": len(found),
        "num_bytes": sum((place / name).stat().st_size for name in found),
        "num_expected_samples": EXPECTED_SAMPLES,
        "missing": missing,
    }
