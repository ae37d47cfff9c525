"""Tessera under one name: `import tessera`, and everything else as `tessera.pipeline`, ....

The folders here are links to those at the top of the checkout. So a program in the checkout, an
editable installation and a wheel run the same code by the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.model import build_clip
    from tessera.model.pretrained import load
    from tessera.pipeline import LoaderConfig, open_loader

__all__ = ["LoaderConfig", "build_clip", "load", "open_loader"]

_HOMES = {
    "LoaderConfig": "pipeline",
    "build_clip": "model",
    "load": "model.pretrained",
    "open_loader": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import tessera` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
