"""A training step whose loss was not finite, once more, to see why."""

from pathlib import Path

import torch

from ohem.models.fast_rcnn import TrainingStep
from ohem.training.beginning import empty_detector
from ohem.training.checkpoint import load_failed_step, start_streams
from ohem.training.loop import forward
from ohem.training.precision import Precision


def replay(file: str | Path, device: str = "cpu") -> TrainingStep:
    """Run the forward pass that stopped a training, with its weights, images, proposals, targets and random numbers.

    It fails as it did then, and so shows where under a debugger or ``torch.autograd.set_detect_anomaly``. The read-only
    pass over all RoIs is run too, as the log asks for it now and then.

    With ``low_rank`` or ``remembered`` ranking the file holds what the copy or the memory knew after the step's own
    ranking pass, where that was finite. The choice of RoIs, and with it what fails, may then be another.

    Args:
        file: ``failed-step-*.pt`` of a run's folder.
        device: where the training ran, for the same numbers.

    Returns:
        The step, where it does not fail on this device or with this version.

    Raises:
        NonFiniteLossError: as in training.
        OhemError: not such a file.
    """
    failed, place = load_failed_step(Path(file)), torch.device(device)
    detector = empty_detector(failed.recipe, failed.num_classes, failed.preprocessing)
    detector.load_state_dict(failed.weights)
    rng = start_streams(failed.recipe.seed, failed.iteration, failed.position)
    with Precision(failed.recipe.precision, place).autocast():
        step = forward(detector.to(place).train(), failed.batch, rng, place)
        step.score()
    return step
