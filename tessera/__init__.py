"""Tessera under one name: `import tessera`, and everything else as `tessera.pipeline`, ....

The folders here are links to those at the top of the checkout. So a program in the checkout, an
editable installation and a wheel run the same code by the same names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lazy import names_from

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

__getattr__ = names_from(__name__, _HOMES)
