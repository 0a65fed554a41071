"""Packages that an extra brings: ``pip install 'ohem[onnx]'``."""

from importlib import import_module
from typing import Any

from ohem.errors import OhemError


def need(module: str, extra: str) -> Any:
    """Import a module of an extra.

    Raises:
        OhemError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise OhemError(f"{module}: found no such module; allowed after: pip install 'ohem[{extra}]'") from error
