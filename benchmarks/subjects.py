"""What is measured: training steps of detectors on random images, boxes and weights; arithmetic does not depend on them.

python benchmarks/subjects.py NETWORK FORM [ROIS]   # the peak memory of two steps, in GB
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import ohem
from ohem.losses import RoiLosses
from ohem.models.weights import build_detector
from ohem.ranking import ExactRanking, HalfRanking, LowRankRanking, Ranking, RememberedRanking
from ohem.recipes.recipe import load_recipe
from ohem.samplers import Sampler, Score
from ohem.training.optimizer import build_optimizer, clip

SIZES = {"vgg16": (600, 800, 2000), "vgg_cnn_m_1024": (600, 800, 2000), "lite0": (240, 320, 700)}
"""Height and width of an image, and its RoIs."""
FPN = "fasterrcnn_resnet50_fpn"
FPN_PROPOSALS = 1000
FORMS = {
    **dict.fromkeys(SIZES, ("FRCN", "OHEM", "OHEM, loss layer", "all RoIs")),
    # All RoIs cost the loss layer's arithmetic, and here half a minute a step.
    **dict.fromkeys(("vgg16", "vgg_cnn_m_1024"), ("FRCN", "OHEM", "OHEM, loss layer")),
    FPN: ("torchvision, 512", "OHEM, 512", "OHEM, 128"),
}
APPROXIMATIONS: dict[str, Ranking] = {
    "half": HalfRanking(),
    "half, choice again": HalfRanking(rescored="choice"),
    "low_rank": LowRankRanking(),
    "low_rank, bfloat16": LowRankRanking(precision="bfloat16"),
    "low_rank, bfloat16, 40 %": LowRankRanking(share=0.4, refresh=20, precision="bfloat16"),
    "low_rank, bfloat16, 60 %": LowRankRanking(share=0.6, refresh=20, precision="bfloat16"),
    "remembered, bfloat16": RememberedRanking(precision="bfloat16"),
}


class FastRcnnSteps:
    """Training steps of a recipe's Fast R-CNN, the optimizer's included.

    Args:
        network: a recipe.
        rois: an image.
        side: of every image, height and width.
        images: N.
        batch: B, RoIs that train in all.
        overrides: of the recipe.
    """

    def __init__(
        self,
        network: str,
        rois: int,
        side: tuple[int, int],
        images: int = 2,
        batch: int = 128,
        overrides: tuple[str, ...] = (),
    ) -> None:
        self.recipe = load_recipe(network, overrides)
        torch.manual_seed(0)
        self.detector = build_detector(self.recipe.detector, 20).train()
        self.optimizer = build_optimizer(self.detector, self.recipe.optimizer)
        self.rois, self.side, self.images, self.each = rois, side, images, batch // images
        self.rng = Generator().manual_seed(0)

    def draw(self) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Images with proposals and four objects each."""
        height, width = self.side
        batch = []
        for number in range(self.images):
            corner = torch.rand(self.rois, 2, generator=self.rng) * torch.tensor([width, height]) * 0.8
            longest = torch.tensor(float(min(self.side))).log() - 3.0
            size = (3.0 + torch.rand(self.rois, 2, generator=self.rng) * longest).exp()
            boxes = torch.cat([corner, torch.minimum(corner + size, torch.tensor([width, height]).float())], dim=1)
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=self.rng)
            target = {"boxes": boxes[:4], "labels": torch.tensor([1, 2, 3, 4]), "image_id": torch.tensor(number)}
            batch.append((image, boxes[4:], target))
        return batch

    def set_form(self, form: str) -> None:
        """One of :data:`FORMS`, or of :data:`APPROXIMATIONS`."""
        hard, detector = ohem.HardSampler(rois_per_image=self.each), self.detector
        detector.mining = "loss_layer" if form == "OHEM, loss layer" else "read_only"
        samplers: dict[str, Sampler] = {"FRCN": ohem.RandomSampler(self.each, bg_lo=0.0), "all RoIs": ohem.AllSampler()}
        detector.sampler = samplers.get(form, hard)

    def step(self, form: str) -> None:
        """A step on new images."""
        self.set_form(form)
        batch = self.draw()
        self.optimizer.zero_grad(set_to_none=True)
        for part in [[one] for one in batch] if self.recipe.accumulate else [batch]:
            images, proposals, targets = zip(*part, strict=True)
            losses = self.detector.training_step(images, proposals, targets, self.rng).losses
            (torch.stack(list(losses.values())).sum() * (len(part) / len(batch))).backward()  # type: ignore[no-untyped-call]
        clip(self.detector, self.recipe.optimizer.clip_norm)
        self.optimizer.step()

    def approximate_steps(self) -> dict[str, Callable[[], None]]:
        """An OHEM step with each approximation, which keeps its state from one call to the next."""

        def work(ranking: Ranking) -> Callable[[], None]:
            self.detector.rank_by(ranking)
            own = self.detector.thin_head, self.detector.loss_memory

            def step() -> None:
                self.detector.ranking = ranking
                self.detector.thin_head, self.detector.loss_memory = own
                self.step("OHEM")
                self.detector.rank_by(ExactRanking())

            return step

        works = {name: work(ranking) for name, ranking in APPROXIMATIONS.items()}
        self.detector.rank_by(ExactRanking())
        return works

    def head_operations(self) -> float:
        """Of one forward pass of the head over all RoIs."""
        layers = [*self.detector.head.fc, self.detector.head.cls_score, self.detector.head.bbox_pred]
        return 2.0 * self.images * self.rois * _weights(layers)

    def parts(self) -> dict[str, float]:
        """Seconds of the parts of an OHEM step, over all images."""
        detector = self.detector
        self.set_form("OHEM")
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.draw()
        clock = Clock()
        for image, proposals, target in batch:
            rois = [detector.label(proposals, target)]
            clock("labels and rest")
            features = detector.features([image])
            clock("backbone, forward")
            losses = detector.rank(features, rois)
            clock("ranking")
            (chosen,) = detector.sampler(rois, given(losses), self.rng)
            clock("NMS and choice")
            (loss,) = detector._losses(features, [rois[0][chosen]])
            clock("head, forward")
            ((loss.cls.mean() + loss.box.mean()) / self.images).backward()
            clock("backward")
        clip(detector, self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        clock("optimizer")
        return clock.seconds


class FpnSteps:
    """Training steps of torchvision's Faster R-CNN on one image of 800 x 1066."""

    images = 1

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=21, rpn_post_nms_top_n_train=FPN_PROPOSALS
        ).train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)

    def step(self, form: str) -> None:
        """A step on a new image."""
        if form.startswith("OHEM"):
            ohem.use_sampler(self.model, ohem.HardSampler(rois_per_image=int(form.split()[1])))
        else:
            ohem.remove_sampler(self.model)
        image = torch.rand(3, 800, 1066)
        boxes = torch.tensor([[50.0, 60, 300, 400], [400, 300, 900, 700], [600, 100, 700, 180]])
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.model([image], [{"boxes": boxes, "labels": torch.tensor([1, 2, 3])}])
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def head_operations(self) -> float:
        """Of one forward pass of the head over all proposals and objects."""
        heads = self.model.roi_heads
        layers = [heads.box_head.fc6, heads.box_head.fc7, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]
        return 2.0 * (FPN_PROPOSALS + 3) * _weights(layers)


class Clock:
    """Adds up the seconds between calls under the names given."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def given(losses: list[RoiLosses]) -> Score:
    """A score that has been computed already."""
    return lambda *, dropout=True: losses


def subject(network: str) -> FastRcnnSteps | FpnSteps:
    """What is measured under that name."""
    if network == FPN:
        return FpnSteps()
    height, width, rois = SIZES[network]
    return FastRcnnSteps(network, rois, (height, width))


def _weights(layers: list[nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers)


def main() -> None:
    network, form, *rois = sys.argv[1:]
    steps = subject(network)
    if isinstance(steps, FastRcnnSteps):
        steps.rois = int(rois[0]) if rois else steps.rois
        steps.images = 1 if steps.recipe.accumulate else steps.images  # they go through one by one
    for _ in range(2):  # the second has the optimizer's state
        steps.step(form)
    print(peak_gb())


def peak_gb() -> float:
    """Of this process. ``getrusage`` would not do on Linux: a child begins with what its parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


if __name__ == "__main__":
    main()
