"""Everything a run needs to go on as if it had never stopped."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from ohem.errors import OhemError
from ohem.files import atomic_writer
from ohem.models.fast_rcnn import FastRCNN

FORMAT = 2


def stream_seed(seed: int, name: str) -> int:
    """The seed of a named stream of randomness, such as ``weights``, ``order``, or ``sampler 7 0``.

    Streams of their own keep two runs paired: another sampler draws other numbers, and still the weights start equal
    and the images come in the same order. Sampler and dropout have a stream for each step and pass, so that a checkpoint
    holds no random state, and what one pass draws changes nothing for the next.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def save_checkpoint(
    path: Path,
    iteration: int,
    best: float | None,
    detector: FastRCNN,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Write the state after ``iteration`` steps, atomically: the old checkpoint stays until the new one is whole."""
    state = {
        "format": FORMAT,
        "iteration": iteration,
        "best": best,
        "detector": detector.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_writer(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path, detector: FastRCNN, optimizer: torch.optim.Optimizer) -> tuple[int, float | None]:
    """Put back all state; returns the iterations done and the best metric so far.

    Raises:
        OhemError: not a checkpoint of this format, or of another detector.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise OhemError(f"{path}: found no readable checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise OhemError(f"{path}: format: found {found!r}; allowed: {FORMAT}")
    try:
        detector.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise OhemError(f"{path}: found the state of another detector ({str(error).splitlines()[0]})") from error
    return int(state["iteration"]), state["best"]
