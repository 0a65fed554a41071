"""What a training step of the paper's networks costs at full size (table 2, claims C6 and C7).

    python -m ohem.studies.cost vgg16 ohem --steps 10 --data VOC2012@trainval

Real images at the recipe's scale, N = 2, 2,000 proposals each; random weights, since arithmetic does not depend on
them. A process measures one form, so that its peak memory is its own. The first step is not counted.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from ohem.data.dataset import ImageId, ImageRecord, Proposals
from ohem.data.loading import Draw, Samples, load_batches
from ohem.models.fast_rcnn import now
from ohem.models.weights import build_detector
from ohem.opening import SILENT, open_dataset, open_proposals, pick_device
from ohem.recipes.recipe import DataSpec, load_recipe
from ohem.training.loop import forward, peak_memory_mb
from ohem.training.optimizer import build_optimizer

FORMS: Mapping[str, tuple[str, ...]] = {
    "frcn": ("sampler=random",),
    "ohem": ("sampler=hard",),
    "loss_layer": ("sampler=hard", "mining=loss_layer"),
}
PROPOSALS = 2000
CPU = torch.device("cpu")


def measure_steps(
    network: str,
    form: str,
    steps: int,
    records: Sequence[ImageRecord],
    proposals: Proposals,
    *,
    classes: int = 20,
    device: torch.device = CPU,
) -> dict[str, float | list[float]]:
    """Seconds of each step, and the peak memory of this process.

    Args:
        network: ``vgg16`` or ``vgg_cnn_m_1024``.
        form: a key of :data:`FORMS`.
        steps: that are counted, of two images each.
        records: the first 2 * (steps + 1) of them are used, from the beginning again where there are fewer.
        proposals: of each.
        classes: of the records, without background.
        device: that it runs on.
    """
    recipe = load_recipe(network, FORMS[form])
    torch.manual_seed(recipe.seed)
    detector = build_detector(recipe.detector, classes).to(device).train()
    detector.sampler, detector.mining = recipe.sampler, recipe.mining
    optimizer = build_optimizer(detector, recipe.optimizer)
    rng = torch.Generator().manual_seed(0)
    filled = {record.id: fill_up(proposals[record.id], record) for record in records}
    samples = Samples(records, filled, recipe.detector.image, PROPOSALS)
    plan = [[Draw((2 * step + i) % len(records)) for i in range(2)] for step in range(steps + 1)]
    total, ranking = [], []
    for batch in load_batches(samples, plan, 0):
        start = now(device)
        optimizer.zero_grad(set_to_none=True)
        ranking.append(0.0)
        for part in [[sample] for sample in batch] if recipe.accumulate else [batch]:
            step = forward(detector, part, rng, device)
            torch.autograd.backward(torch.stack(list(step.losses.values())).sum() * (len(part) / len(batch)))
            ranking[-1] += step.score.seconds
        optimizer.step()
        total.append(now(device) - start)
    return {
        "seconds": median(total[1:]),
        "ranking": median(ranking[1:]),
        "each": [round(value, 3) for value in total[1:]],
        "memory_gb": peak_memory_mb(device) / 1024,
    }


def fill_up(boxes: NDArray[np.float32], record: ImageRecord) -> NDArray[np.float32]:
    """Exactly :data:`PROPOSALS` boxes (P, 4): the image's own, and where it has fewer, copies moved by a few pixels.

    Of an image without any, the whole image is the first.
    """
    rng = np.random.default_rng(0)
    if not len(boxes):
        boxes = np.array([[0, 0, record.width, record.height]], np.float32)
    while len(boxes) < PROPOSALS:
        moved = boxes + rng.normal(0, 4, boxes.shape).astype(np.float32)
        moved = moved.clip(0, [record.width, record.height] * 2).astype(np.float32)
        solid = ((moved[:, 2:] - moved[:, :2]) >= 1).all(axis=1)
        boxes = np.concatenate([boxes, moved[solid]])
    return boxes[:PROPOSALS]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("vgg16", "vgg_cnn_m_1024"))
    parser.add_argument("form", choices=list(FORMS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--proposals", action="append", default=[])
    parser.add_argument("--class", action="append", default=[], dest="classes")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    names = {"classes": tuple(arguments.classes), "other_classes": "drop"} if arguments.classes else {}
    dataset = open_dataset(arguments.data, DataSpec.model_validate({"bad_boxes": "drop", **names}), SILENT)
    loaded = load_recipe(arguments.network).detector.given_proposals
    used = dataset.records[: 2 * (arguments.steps + 1)]
    proposals = open_proposals(dataset, arguments.proposals, loaded, 2, SILENT)
    own: dict[ImageId, NDArray[np.float32]] = {record.id: proposals[record.id] for record in used}
    network, form, steps, device = arguments.network, arguments.form, arguments.steps, pick_device(arguments.device)
    result = measure_steps(network, form, steps, used, own, classes=len(dataset.classes), device=device)
    print(
        json.dumps({**result, "threads": torch.get_num_threads(), "device": device.type, "network": arguments.network})
    )


if __name__ == "__main__":
    main()
