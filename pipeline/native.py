"""The compiled part of the pipeline: `tessera._native`, built from native/ by `pip install`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class NotBuiltError(RuntimeError):
    """The compiled part is not here; the message says how to get it."""


def load_native() -> ModuleType:
    """The module, whose functions `tessera/_native.pyi` describes.

    Raises:
        NotBuiltError: it was not built, or not for this machine.
    """
    try:
        return import_module("tessera._native")
    except ImportError as error:
        raise NotBuiltError(
            f"tessera's C extension is not built ({error}): install a C compiler (gcc or clang), "
            "then run in the checkout: pip install -c constraints.txt -e ."
        ) from error
