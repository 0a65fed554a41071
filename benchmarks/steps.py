"""What a training step costs: FRCN, OHEM in both forms, all RoIs, beside the cost that counted operations allow.

    python benchmarks/steps.py                      # everything, about half an hour; see --only and --networks
    python benchmarks/steps.py --data DATA@SPLIT    # also: how many of real proposals read the same cells as another

Random images, boxes and weights: arithmetic does not depend on them. Forms take turns in one process, so that ratios
hold on a machine that is not quiet; figures are medians. Peak memory is that of a process of its own. The floor is the
ratio of the multiply-adds of convolutions and matrix products, counted in the step of the baseline and, for OHEM, in
one forward pass of the RoI head over all RoIs on top of it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import fasterrcnn_resnet50_fpn

import ohem
from ohem.console import Console
from ohem.losses import RoiLosses
from ohem.models.weights import build_detector
from ohem.recipes.recipe import DataSpec, load_recipe
from ohem.samplers import Sampler, Score
from ohem.training.optimizer import build_optimizer, clip
from ohem.training.run import machine
from ohem.workflow import open_dataset, open_proposals

RESULT = Path(__file__).parent / "results" / "steps.json"
SIZES = {"vgg16": (600, 800, 2000), "vgg_cnn_m_1024": (600, 800, 2000), "lite0": (240, 320, 700)}
"""Height and width of an image, and its RoIs."""
FPN = "fasterrcnn_resnet50_fpn"
FPN_PROPOSALS = 1000
FORMS = {
    **dict.fromkeys(SIZES, ("FRCN", "OHEM", "OHEM, loss layer", "all RoIs")),
    FPN: ("torchvision, 512", "OHEM, 512", "OHEM, 128"),
}
PAPER = {"vgg16": {"OHEM": (1.75, 1.38)}, "vgg_cnn_m_1024": {"OHEM": (1.69, 1.36)}}
"""Time and memory over FRCN's, table 2."""

Parts = dict[str, float]


class FastRcnnSteps:
    """Training steps of a recipe's Fast R-CNN, the optimizer's included.

    Args:
        network: a recipe.
        rois: an image.
        side: of every image, height and width.
        images: N.
        batch: B, RoIs that train in all.
    """

    def __init__(self, network: str, rois: int, side: tuple[int, int], images: int = 2, batch: int = 128) -> None:
        self.recipe = load_recipe(network)
        torch.manual_seed(0)
        self.detector = build_detector(self.recipe.detector, 20).train()
        self.optimizer = build_optimizer(self.detector, self.recipe.optimizer)
        self.rois, self.side, self.images, self.each = rois, side, images, batch // images
        self.rng = Generator().manual_seed(0)

    def draw(self) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Images with proposals and four objects each."""
        height, width = self.side
        batch = []
        for _ in range(self.images):
            corner = torch.rand(self.rois, 2, generator=self.rng) * torch.tensor([width, height]) * 0.8
            longest = torch.tensor(float(min(self.side))).log() - 3.0
            size = (3.0 + torch.rand(self.rois, 2, generator=self.rng) * longest).exp()
            boxes = torch.cat([corner, torch.minimum(corner + size, torch.tensor([width, height]).float())], dim=1)
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=self.rng)
            batch.append((image, boxes[4:], {"boxes": boxes[:4], "labels": torch.tensor([1, 2, 3, 4])}))
        return batch

    def set_form(self, form: str) -> None:
        """One of :data:`FORMS`."""
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

    def head_operations(self) -> float:
        """Of one forward pass of the head over all RoIs."""
        layers = [*self.detector.head.fc, self.detector.head.cls_score, self.detector.head.bbox_pred]
        return 2.0 * self.images * self.rois * sum(layer.weight.numel() for layer in layers)

    def parts(self) -> Parts:
        """Seconds of the parts of an OHEM step, over all images."""
        found: Parts = {}
        detector = self.detector
        self.set_form("OHEM")
        clock = Clock(found)
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.draw()
        for image, proposals, target in batch:
            clock.start()
            rois = [detector.label(proposals, target)]
            clock("labels and rest")
            features = detector.features([image])
            clock("backbone, forward")
            losses = detector.rank(features, rois)
            clock("ranking")
            (chosen,) = detector.sampler(rois, given(losses), self.rng)
            clock("NMS and choice")
            loss = detector._losses(features[0], rois[0][chosen])
            clock("head, forward")
            ((loss.cls.mean() + loss.box.mean()) / self.images).backward()
            clock("backward")
        clip(detector, self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        clock("optimizer")
        return found


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
        return 2.0 * (FPN_PROPOSALS + 3) * sum(layer.weight.numel() for layer in layers)


class Clock:
    """Adds up the seconds between calls under the names given."""

    def __init__(self, seconds: Parts) -> None:
        self.seconds = seconds
        self.start()

    def start(self) -> None:
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


def turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, ``repeats`` times, taking turns; a first time for each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Median of the ratios of the turns."""
    return median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def operations(work: Callable[[], object]) -> float:
    """Of convolutions and matrix products, forward and backward; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def measure_steps(network: str, repeats: int) -> dict[str, Any]:
    """Time, memory and floor of a network's forms."""
    steps, forms = subject(network), FORMS[network]
    base = forms[0]
    seconds = turns({form: (lambda f=form: steps.step(f)) for form in forms}, repeats)  # type: ignore[misc]
    memory = {form: peak_gb(["--memory-of", network, form]) for form in forms}
    counted = operations(lambda: steps.step(base))
    floors = {form: operations(lambda f=form: steps.step(f)) / counted for form in forms}  # type: ignore[misc]
    # What this package leaves out of the read-only pass is no part of the floor.
    floors["OHEM" if "OHEM" in forms else "OHEM, 512"] = 1 + steps.head_operations() / counted
    rows = {
        form: {
            "seconds": median(seconds[form]),
            "time ratio": ratio(seconds, form, base),
            "counted ratio": floors[form],
            "memory, GB": memory[form],
            "memory ratio": memory[form] / memory[base],
        }
        for form in forms
    }
    print(f"\n{network}, {steps.images} images a step; ratios to {base}")
    print_table(rows, {form: PAPER.get(network, {}).get(form) for form in forms})
    return rows


def measure_ranking(network: str, repeats: int) -> Parts:
    """The read-only pass of one image and the choice, against the matrix products of its layers alone."""
    height, width, rois = SIZES[network]
    steps = FastRcnnSteps(network, rois, (height, width), images=1, batch=64)
    detector, head = steps.detector, steps.detector.head
    ((image, proposals, target),) = steps.draw()
    labelled = [detector.label(proposals, target)]
    with torch.no_grad():
        features = detector.features([image])
        pooled = torch.rand(len(labelled[0]), head.fc[0].in_features)

    @torch.no_grad()
    def products() -> None:
        hidden = pooled
        for layer in head.fc:
            hidden = linear(hidden, layer.weight)
        linear(hidden, head.cls_score.weight)
        linear(hidden, head.bbox_pred.weight)

    def rank_and_choose() -> None:
        ohem.HardSampler(rois_per_image=64)(labelled, given(detector.rank(features, labelled)), steps.rng)

    seconds = turns({"matrix products": products, "ranking": rank_and_choose}, repeats)
    found = {name: median(values) for name, values in seconds.items()}
    found["ratio"] = ratio(seconds, "ranking", "matrix products")
    found["different RoIs"] = len(head.distinct(labelled[0].boxes)[0]) / len(labelled[0])
    print(f"{network:16} {rois} RoIs: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def measure_shares(network: str, repeats: int) -> Parts:
    """The parts of an OHEM step, as shares."""
    steps = subject(network)
    assert isinstance(steps, FastRcnnSteps)
    runs = [steps.parts() for _ in range(repeats + 1)][1:]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    whole = sum(middle.values())
    print(f"{network:16} {whole:.2f} s: " + ", ".join(f"{n} {100 * v / whole:.1f} %" for n, v in middle.items()))
    return {name: value / whole for name, value in middle.items()}


def measure_growth(repeats: int) -> dict[str, dict[str, Parts]]:
    """Seconds of an OHEM and an FRCN step of lite0 against R, B, N and the size of images."""
    changes: dict[str, Iterable[tuple[str, dict[str, Any]]]] = {
        "RoIs an image": [(str(r), {"rois": r}) for r in (250, 500, 1000, 2000, 4000, 10_000)],
        "RoIs that train": [(str(b), {"batch": b}) for b in (32, 64, 128, 256, 512)],
        "images a step": [(str(n), {"images": n, "batch": 64 * n}) for n in (1, 2, 4)],
        "pixels": [(f"{h} x {w}", {"side": (h, w)}) for h, w in ((240, 320), (360, 480), (480, 640), (600, 800))],
    }
    height, width, rois = SIZES["lite0"]
    found: dict[str, dict[str, Parts]] = {}
    for what, values in changes.items():
        found[what] = {}
        for label, change in values:
            steps = FastRcnnSteps("lite0", **{"rois": rois, "side": (height, width), **change})
            forms = {form: (lambda f=form, s=steps: s.step(f)) for form in ("FRCN", "OHEM")}  # type: ignore[misc]
            seconds = turns(forms, repeats)
            found[what][label] = {form: median(values) for form, values in seconds.items()}
            print(
                f"lite0, {what} {label:>9}: FRCN {found[what][label]['FRCN']:.3f} s, OHEM {median(seconds['OHEM']):.3f} s"
            )
    return found


def measure_memory_growth() -> dict[str, float]:
    """Peak memory of an OHEM step against R."""
    found = {str(r): peak_gb(["--memory-of", "vgg_cnn_m_1024", "OHEM", "--rois", str(r)]) for r in (1000, 2000, 10_000)}
    print("vgg_cnn_m_1024, OHEM, peak GB: " + ", ".join(f"{r} RoIs {gb:.2f}" for r, gb in found.items()))
    return found


def measure_copies(data: Sequence[str], proposals: Sequence[str], images: int) -> Parts:
    """How many of real proposals differ after rounding to cells of 16 px, at 600 px."""
    with Console() as console:
        dataset = open_dataset(data, DataSpec(bad_boxes="drop"), console)
        boxes = open_proposals(dataset, proposals, load_recipe("vgg16").detector.proposals, 1, console)
    head = build_detector(load_recipe("lite0", ["detector.head.pool=max"]).detector, 1).head
    shares, counts = [], []
    for record in dataset.records[:images]:
        scale = min(600 / min(record.height, record.width), 1000 / max(record.height, record.width))
        own = torch.from_numpy(boxes[record.id]) * scale
        counts.append(len(own))
        shares.append(len(head.distinct(own)[0]) / len(own))
    found = {"proposals, median": median(counts), "different, median": median(shares)}
    print(f"{len(shares)} images: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    return found


def peak_gb(arguments: list[str]) -> float:
    """Of a process of its own."""
    command = [sys.executable, __file__, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory(network: str, form: str, rois: int | None) -> None:
    """What :func:`peak_gb` reads."""
    steps = subject(network)
    if rois and isinstance(steps, FastRcnnSteps):
        steps.rois = rois
    for _ in range(3):
        steps.step(form)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def print_table(rows: dict[str, Parts], paper: dict[str, tuple[float, float] | None]) -> None:
    """One line a form."""
    columns = next(iter(rows.values()))
    print(f"{'':18}" + "".join(f"{name:>16}" for name in columns) + "   paper: time, memory")
    for form, row in rows.items():
        theirs = paper[form]
        print(
            f"{form:18}"
            + "".join(f"{value:16.2f}" for value in row.values())
            + (f"   {theirs[0]}, {theirs[1]}" if theirs else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--only", nargs="+", choices=("ranking", "steps", "shares", "growth", "memory"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--proposals", action="append", default=[])
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "FORM"), help=argparse.SUPPRESS)
    parser.add_argument("--rois", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print_memory(*arguments.memory_of, arguments.rois)
        return
    results: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    repeats, networks = arguments.repeats, arguments.networks
    ours = [network for network in networks if network in SIZES]
    wanted = arguments.only or ("ranking", "steps", "shares", "growth", "memory")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ranking": lambda: {network: measure_ranking(network, repeats) for network in ours},
        "steps": lambda: {network: measure_steps(network, repeats) for network in networks},
        "shares": lambda: {network: measure_shares(network, repeats) for network in ours},
        "growth": lambda: measure_growth(repeats),
        "memory": measure_memory_growth,
    }
    print(f"{torch.get_num_threads()} threads; medians of {repeats}")
    stamp = {"date": str(date.today()), "machine": machine()}
    for part in wanted:
        print(f"\n{part}")
        results[part] = {**results.get(part, {}), **parts[part](), **stamp}
    if arguments.data:
        results["copies"] = {**measure_copies(arguments.data, arguments.proposals, 200), **stamp}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
