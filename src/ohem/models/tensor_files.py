"""Reading files of tensors from anybody: no pickle that could run code, and one line for what is wrong."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ohem.data.rules import one_line
from ohem.errors import DataError, Fault, OhemError


def load_torch(path: Path) -> Any:
    """A torch file's tensors and plain values, on the CPU; nothing in it is run, and nothing swells.

    Raises:
        Exception: of many kinds, for anything else.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed members, which torch does not write and would read without a limit")
    return torch.load(path, "cpu", weights_only=True)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a torch file without any other objects in it.

    Raises:
        OhemError: missing, unreadable, or holding something other than tensors.
    """
    if not path.is_file():
        raise OhemError(f"{path}: found no such file; allowed: a .safetensors or .pth file with weights")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_torch(path)
    except Exception as error:
        # Not torch's own text: it advises to load the file with weights_only=False.
        raise OhemError(f"{path}: found no readable weights ({type(error).__name__}); allowed: tensors") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise OhemError(f"{path}: found {type(state).__name__}; allowed: a mapping of names to tensors")
    return state


def read_metadata(path: Path, name: str) -> Any:
    """The JSON under ``name`` in a .safetensors file's metadata; an empty object where there is none.

    Raises:
        OhemError: missing, or no .safetensors file.
    """
    if not path.is_file():
        raise OhemError(f"{path}: found no such file; allowed: a .safetensors file with weights")
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get(name, "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(
            [Fault(path, "", f"no safetensors file ({one_line(str(error))})", "a .safetensors file")]
        ) from error
