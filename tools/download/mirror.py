"""Ready-made shards in place of a crawl: CC12M as it was in 2021, from a folder or the hub.

About 62 % of CC12M's links are alive today. `pixparse/cc12m-wds` on the Hugging Face hub holds a
crawl of 2021: 10,968,539 pairs (88.3 %) in 2,176 tars, the count that the papers trained on. What
is in the tars is checked when they are indexed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = "pixparse/cc12m-wds"
EXPECTED_SAMPLES = 10_968_539
EXPECTED_SHARDS = tuple(f"cc12m-train-{number:04d}.tar" for number in range(2176))
_BLOCK = 512


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
        ValueError: tars are missing or cut short; the message names them.
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
    place = shards if source is None else source.resolve()
    expected = _expected(place)
    missing = [name for name in expected if not (place / name).is_file()]
    found = [name for name in expected if (place / name).is_file()]
    if not found or (missing and not allow_missing):
        raise ValueError(
            f"{len(missing)} of {len(expected)} tars are missing in {place} ({_some(missing)}): "
            "fetch them, or take a part with --allow-missing"
        )
    if cut := [name for name in found if _is_cut(place / name)]:
        raise ValueError(f"{len(cut)} tars are cut short: {_some(cut)}. Fetch them again")
    if strangers := [path.name for path in shards.glob("*.tar") if path.name not in expected]:
        raise ValueError(f"{shards} holds other tars ({_some(strangers)}): name another folder")
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


def _expected(folder: Path) -> list[str]:
    """Names of the tars of the set: by the list that came with it, else those of CC12M."""
    path = folder / "_info.json"
    if not path.is_file():
        return list(EXPECTED_SHARDS)
    try:
        splits = json.loads(path.read_text("utf-8"))["splits"].values()
        names = [str(name) for split in splits for name in split["filenames"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of shards ({error!r}): fetch it again") from error
    if strange := [n for n in names if Path(n).name != n or not n.endswith(".tar")]:
        raise ValueError(f"{path} names {_some(strange)}, which are no tars in this folder")
    return names


def _is_cut(path: Path) -> bool:
    """Whether a tar cannot be whole: it begins with a header and ends with two empty blocks."""
    size = path.stat().st_size
    if size < 3 * _BLOCK or size % _BLOCK:
        return True
    with path.open("rb") as file:
        head = file.read(_BLOCK)
        file.seek(-2 * _BLOCK, 2)
        return head[257:262] != b"ustar" or any(file.read())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
