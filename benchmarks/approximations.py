"""What the approximate rankings save in a step, and how much of the exact choice they find while a network trains."""

from collections.abc import Sequence
from statistics import mean

import torch

import ohem
from ohem.console import Console
from ohem.data.loading import Samples, load_batches, training_batches
from ohem.losses import RoiLosses
from ohem.models.fast_rcnn import FastRCNN
from ohem.opening import open_dataset, open_proposals
from ohem.ranking import ExactRanking
from ohem.recipes.recipe import Recipe, load_recipe
from ohem.studies.cost import fill_up
from ohem.training.beginning import AnnotatedImages, new_detector, set_method
from ohem.training.checkpoint import start_streams
from ohem.training.loop import forward
from ohem.training.optimizer import build_optimizer, clip, set_lr
from subjects import APPROXIMATIONS, SIZES, FastRcnnSteps
from timing import Work, line, turns

WIDE = ("detector.head.pool=max", "detector.head.fc=[1024, 1024]", "detector.head.dropout=0.5")
FILLED = "lite0, max pooling, dropout, 2,000 RoIs"
"""An image's own proposals are filled up with moved copies: many near-duplicates, as the paper's have."""
HEADS: dict[str, tuple[str, ...]] = {"lite0": (), "lite0, max pooling, dropout": WIDE, FILLED: WIDE}
IMAGES, STEPS = 50, 200
NOT_TIMED = ("low_rank", "remembered, bfloat16")
"""To keep it short: slower than the same in bfloat16, and too far from the exact choice."""
CPU = torch.device("cpu")


def measure_savings(network: str, repeats: int, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Time of an OHEM step with each approximation over FRCN's.

    Passes over all RoIs, which some make now and then, fall between those measured; ``refreshed`` counts them in.
    """
    height, width, rois = SIZES[network]
    steps = FastRcnnSteps(network, rois, (height, width))
    works = {
        "FRCN": lambda: steps.step("FRCN"),
        "exact": lambda: steps.step("OHEM"),
        **_timed(steps.approximate_steps(), names),
    }
    found = turns(works, repeats)
    rows = {}
    for name, value in found.seconds().items():
        rows[name] = {"seconds": value, **found.ratios(name, "FRCN")}
        every = getattr(APPROXIMATIONS.get(name), "refresh", 0)
        if every:
            whole = found.ratios("half" if "bfloat16" in name else "exact", "FRCN")
            rows[name] |= {
                f"{what}, refreshed": own + (whole[what] - own) / every
                for what, own in found.ratios(name, "FRCN").items()
            }
        print(line(f"{network} {name}", rows[name]))
    return rows


def _timed(works: dict[str, Work], names: Sequence[str]) -> dict[str, Work]:
    return {name: work for name, work in works.items() if name in names and name not in NOT_TIMED}


def measure_overlaps(
    data: Sequence[str], proposals: Sequence[str], head: str, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """The share of the exact choice that each approximation finds, step by step of one training by the exact one.

    Dropout is off where choices are compared: two exact ones with dropout differ by its masks. The loss of a choice is
    the exact mean loss of its RoIs over that of the exact choice's. The first epoch does not count.
    """
    recipe = load_recipe("lite0", [*HEADS[head], "data.bad_boxes=drop", f"iterations={STEPS}", "schedule.warmup=20"])
    with Console() as console:
        dataset = open_dataset(data, recipe.data, console)
        images = AnnotatedImages(dataset, open_proposals(dataset, proposals, recipe.detector.proposals, 1, console))
    own = {record.id: images.proposals[record.id] for record in dataset.records[:IMAGES]}
    if head == FILLED:
        own = {record.id: fill_up(own[record.id], record) for record in dataset.records[:IMAGES]}
    detector = new_detector(recipe, images).train()
    set_method(detector, recipe)
    shadows = {name: Shadow(detector, name) for name in names}
    samples = Samples(dataset.records[:IMAGES], own, recipe.detector.image)
    _train(recipe, detector, samples, list(shadows.values()))
    rows = {name: shadow.summary() for name, shadow in shadows.items()}
    for name, row in rows.items():
        print(line(f"{head}, {name}", row))
    return rows


class Shadow:
    """One approximation that chooses beside the exact one, and is not trained on."""

    def __init__(self, detector: FastRCNN, name: str) -> None:
        self.detector, self.ranking = detector, APPROXIMATIONS[name]
        detector.rank_by(self.ranking)
        self.state = detector.thin_head, detector.loss_memory
        detector.rank_by(ExactRanking())
        self.found: list[float] = []
        self.hardness: list[float] = []

    def compare(
        self, features: list[torch.Tensor], rois: list[ohem.Rois], numbers: list[int], exact: list[RoiLosses]
    ) -> None:
        detector, sampler = self.detector, self.detector.sampler
        detector.ranking, (detector.thin_head, detector.loss_memory) = self.ranking, self.state
        losses = detector.rank(features, rois, dropout=False, images=numbers)
        detector.rank_by(ExactRanking())
        theirs, ours = (sampler(rois, lambda *, dropout=True, w=which: w, None) for which in (exact, losses))
        for image, wanted, chosen in zip(exact, theirs, ours, strict=True):
            self.found.append(len(set(wanted.tolist()) & set(chosen.tolist())) / len(wanted))
            self.hardness.append(float(image.total[chosen].mean() / image.total[wanted].mean()))

    def summary(self) -> dict[str, float]:
        counted = slice(IMAGES, None)
        return {
            "overlap": mean(self.found[counted]),
            "overlap, last quarter": mean(self.found[-len(self.found) // 4 :]),
            "loss of its choice": mean(self.hardness[counted]),
        }


def _train(recipe: Recipe, detector: FastRCNN, samples: Samples, shadows: list[Shadow]) -> None:
    optimizer = build_optimizer(detector, recipe.optimizer)
    plan = training_batches(IMAGES, recipe.images_per_step, range(STEPS), recipe.seed, recipe.data.flip)
    for iteration, batch in enumerate(load_batches(samples, plan, 1)):
        set_lr(optimizer, recipe.schedule.factor(iteration, STEPS))
        step = forward(detector, batch, start_streams(recipe.seed, iteration, 0), CPU)
        numbers = [int(sample.target["image_id"]) for sample in batch]
        with torch.no_grad():
            features = detector.features([sample.image for sample in batch])
        exact = detector.rank(features, step.rois, dropout=False)
        for shadow in shadows:
            shadow.compare(features, step.rois, numbers, exact)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(step.losses.values())).sum().backward()
        clip(detector, recipe.optimizer.clip_norm)
        optimizer.step()
