"""What a training step costs: FRCN, OHEM in both forms, all RoIs; and what counted operations allow.

The floor is the ratio of the multiply-adds of convolutions and matrix products: those of the baseline's step and, for
OHEM, of one forward pass of the RoI head over all RoIs on top of them.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import ohem
from ohem.models.products import linear
from subjects import FORMS, SIZES, FastRcnnSteps, given, subject
from timing import line, operations, turns

PAPER = {"vgg16": {"OHEM": 1.75}, "vgg_cnn_m_1024": {"OHEM": 1.69}}
"""Time over FRCN's, table 2."""


def measure_steps(network: str, repeats: int) -> dict[str, dict[str, float]]:
    """Time and floor of a network's forms."""
    steps, forms = subject(network), FORMS[network]
    base = forms[0]
    found = turns({form: (lambda f=form: steps.step(f)) for form in forms}, repeats)  # type: ignore[misc]
    counted = operations(lambda: steps.step(base))
    floors = {form: operations(lambda f=form: steps.step(f)) / counted for form in forms}  # type: ignore[misc]
    # What this package leaves out of the read-only pass is no part of the floor.
    floors["OHEM" if "OHEM" in forms else "OHEM, 512"] = 1 + steps.head_operations() / counted
    rows = {
        form: {
            "seconds": value,
            **found.ratios(form, base),
            "counted ratio": floors[form],
        }
        for form, value in found.seconds().items()
    }
    for form, row in rows.items():
        theirs = PAPER.get(network, {}).get(form)
        print(line(f"{network[:14]} {form}", row) + (f"; the paper: {theirs}" if theirs else ""))
    if "OHEM, loss layer" in forms:
        rows["OHEM, loss layer / OHEM"] = {
            **found.ratios("OHEM, loss layer", "OHEM"),
            "counted ratio": floors["OHEM, loss layer"] / floors["OHEM"],
        }
        print(line(f"{network[:14]} loss layer / OHEM", rows["OHEM, loss layer / OHEM"]))
    return rows


def measure_ranking(network: str, repeats: int) -> dict[str, float]:
    """The read-only pass of one image and the choice, against its products alone: by oneDNN, and by torch's layers."""
    height, width, rois = SIZES[network]
    steps = FastRcnnSteps(network, rois, (height, width), images=1, batch=64)
    detector, head = steps.detector, steps.detector.head
    ((image, proposals, target),) = steps.draw()
    labelled = [detector.label(proposals, target)]
    with torch.no_grad():
        features = detector.features([image])
        pooled = torch.rand(len(labelled[0]), head.fc[0].in_features)

    @torch.no_grad()
    def products(multiply: Callable[[nn.Module, Tensor], Tensor]) -> None:
        hidden = pooled
        for layer in head.fc:
            hidden = multiply(layer, hidden)
        multiply(head.cls_score, hidden)
        multiply(head.bbox_pred, hidden)

    def rank_and_choose() -> None:
        ohem.HardSampler(rois_per_image=64)(labelled, given(detector.rank(features, labelled)), steps.rng)

    both = turns(
        {
            "matrix products": lambda: products(linear),
            "torch's products": lambda: products(lambda layer, values: layer(values)),
            "ranking": rank_and_choose,
        },
        repeats,
    )
    theirs = both.ratios("ranking", "torch's products")
    found = {
        **both.seconds(),
        **both.ratios("ranking", "matrix products"),
        **{f"{name} to torch's": value for name, value in theirs.items()},
    }
    found["different RoIs"] = len(head.distinct(labelled[0].boxes)[0]) / len(labelled[0])
    print(line(f"{network}, {rois} RoIs", found))
    return found


def measure_shares(network: str, repeats: int) -> dict[str, float]:
    """The parts of an OHEM step, as shares."""
    steps: Any = subject(network)
    runs = [steps.parts() for _ in range(repeats + 1)][1:]
    middle = {name: median(run[name] for run in runs) for name in runs[0]}
    whole = sum(middle.values())
    shares = {name: value / whole for name, value in middle.items()}
    print(line(f"{network}, {whole:.2f} s", shares))
    return shares
