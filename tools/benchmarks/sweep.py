"""Our whole loader under other settings, one changed at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tessera.tools.benchmarks.own import LoaderSide
from tessera.tools.benchmarks.side import Setting
from tessera.tools.benchmarks.turns import Entrant, take_turns


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Values to try; each list on its own, everything else as given."""

    threads: tuple[int, ...] = ()
    """Threads of the loader."""
    batch_size: tuple[int, ...] = ()
    """Pairs in a batch."""
    image_size: tuple[int, ...] = ()
    """Side of the decoded square, in pixels."""
    mask: tuple[Literal["none", "random", "grid", "block", "cluster"], ...] = ()
    """Kinds of mask."""

    def settings(self, base: Setting) -> dict[tuple[str, str], Setting]:
        """By (name of the setting, its value).

        Raises:
            ValueError: a value does not fit the others.
        """
        changed: dict[tuple[str, str], Setting] = {}
        for value in self.threads:
            changed["threads", str(value)] = replace(base, num_workers=value)
        for value in self.batch_size:
            changed["batch_size", str(value)] = replace(base, batch_size=value)
        for value in self.image_size:
            changed["image_size", str(value)] = replace(base, image_size=value)
        for kind in self.mask:
            changed["mask", kind] = replace(base, mask=replace(base.mask, kind=kind))
        for setting in changed.values():
            setting.loader_config()
        return changed


def run_sweep(
    settings: dict[tuple[str, str], Setting],
    *,
    num_batches: int,
    repeats: int,
    progress: Callable[[str], object],
) -> list[dict[str, Any]]:
    """Time every setting; one that fails carries its reason instead of figures."""
    found = []
    for (name, value), setting in settings.items():
        key = f"{name} {value}"
        # One at a time: the threads of loaders that wait would share the memory bus and the caches.
        results = take_turns(
            {key: Entrant(build=LoaderSide, setting=setting)},
            num_batches=num_batches,
            repeats=repeats,
            progress=progress,
        )
        entry: dict[str, Any] = {"setting": name, "value": value}
        if key in results.left_out:
            entry["failed"] = results.left_out[key]
        else:
            entry |= results.summary(key)
            entry["bottleneck"] = results.turns[key][-1].known["bottleneck"]
        found.append(entry)
    return found
