"""Everything a run needs to go on as if it had never stopped, and what a step that failed leaves behind."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from ohem.data.loading import Sample
from ohem.data.rules import one_line, quoted
from ohem.errors import OhemError
from ohem.files import atomic_writer
from ohem.models.backbones import Preprocessing
from ohem.models.fast_rcnn import FastRCNN
from ohem.models.tensor_files import load_torch
from ohem.recipes.recipe import Recipe

FORMAT = 2
FAILED_STEP_FORMAT = "ohem-failed-step-1"


class Stateful(Protocol):
    """A part of training that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """What it needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Put it back."""
        ...


def stream_seed(seed: int, name: str) -> int:
    """The seed of a named stream of randomness, such as ``weights``, ``order``, or ``sampler 7 0``.

    Streams of their own keep two runs paired: another sampler draws other numbers, and still the weights start equal
    and the images come in the same order. Sampler and dropout have a stream for each step and pass, so that a checkpoint
    holds no random state, and what one pass draws changes nothing for the next.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def start_streams(seed: int, iteration: int, position: int) -> Generator:
    """Begin the streams of one forward pass: dropout's is torch's own, the sampler's is returned.

    Args:
        seed: the recipe's.
        iteration: from 0.
        position: of the pass's first image among those of the step, where they run one after the other.
    """
    torch.manual_seed(stream_seed(seed, f"dropout {iteration} {position}"))
    return Generator().manual_seed(stream_seed(seed, f"sampler {iteration} {position}"))


def save_checkpoint(path: Path, iteration: int, best: float | None, parts: Mapping[str, Stateful]) -> None:
    """Write the state after ``iteration`` steps, atomically: the old checkpoint stays until the new one is whole."""
    states = {name: part.state_dict() for name, part in parts.items()}
    with atomic_writer(path) as file:
        torch.save({"format": FORMAT, "iteration": iteration, "best": best, **states}, file)


def load_checkpoint(path: Path, parts: Mapping[str, Stateful]) -> tuple[int, float | None]:
    """Put back the state of all parts; returns the iterations done and the best metric so far.

    Raises:
        OhemError: not a checkpoint of this format, of another detector, or with other parts.
    """
    state = _load(path, "checkpoint", FORMAT)
    found, wanted = (", ".join(sorted(names)) for names in (state.keys() - {"format", "iteration", "best"}, parts))
    if found != wanted:
        raise OhemError(f"{path}: found the state of {found}; allowed: {wanted} (a run keeps its ema and precision)")
    iteration, best = state.get("iteration"), state.get("best")
    if type(iteration) is not int or iteration < 0 or not isinstance(best, float | None):
        raise OhemError(f"{path}: iteration: found {quoted(iteration)}; allowed: how many are done")
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OhemError(f"{path}: found the state of another detector ({one_line(str(error))})") from error
    return iteration, best


@dataclass(frozen=True, eq=False)
class FailedStep:
    """A forward pass with a loss that was not finite, and all that it takes to run it again.

    Attributes:
        recipe: of the run.
        num_classes: C.
        preprocessing: of the backbone.
        weights: the detector's, with which the pass began.
        batch: its images, proposals and targets.
        iteration: of the step, from 0.
        position: see :func:`start_streams`.
    """

    recipe: Recipe
    num_classes: int
    preprocessing: Preprocessing
    weights: dict[str, Tensor]
    batch: list[Sample]
    iteration: int
    position: int


def save_failed_step(
    path: Path, recipe: Recipe, detector: FastRCNN, batch: list[Sample], iteration: int, position: int
) -> None:
    """Keep a pass that failed, atomically. Arguments as in :class:`FailedStep`."""
    state = {
        "format": FAILED_STEP_FORMAT,
        "recipe": recipe.model_dump_json(),
        "num_classes": detector.num_classes,
        "preprocessing": asdict(detector.backbone.preprocessing),
        "weights": detector.state_dict(),
        "batch": [vars(sample) for sample in batch],
        "iteration": iteration,
        "position": position,
    }
    with atomic_writer(path) as file:
        torch.save(state, file)


def load_failed_step(path: Path) -> FailedStep:
    """Read what :func:`save_failed_step` kept.

    Raises:
        OhemError: not such a file.
    """
    state = _load(path, "failed step", FAILED_STEP_FORMAT)
    del state["format"]
    state["recipe"] = Recipe.model_validate_json(state["recipe"])
    state["preprocessing"] = Preprocessing(**state["preprocessing"])
    state["batch"] = [Sample(**sample) for sample in state["batch"]]
    return FailedStep(**state)


def _load(path: Path, what: str, wanted: int | str) -> dict[str, Any]:
    try:
        state = load_torch(path)
    # A damaged pickle ends in whatever its last sound opcode leads to (KeyError, IndexError, struct.error ...). Torch's own
    # text is not told: it advises to load the file with weights_only=False.
    except Exception as error:
        raise OhemError(f"{path}: found no readable {what} ({type(error).__name__}); allowed: one of ohem's") from error
    if not isinstance(state, dict) or state.get("format") != wanted:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise OhemError(f"{path}: format: found {quoted(found)}; allowed: {wanted}, the format of this version of ohem")
    return state
