"""How the cost of a step grows with R, B, N and the size of images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ohem.studies.chart import line_chart
from subjects import SIZES, FastRcnnSteps
from timing import line, operations, turns

ROIS = {"lite0": (250, 500, 1000, 2000, 4000, 10_000), "vgg_cnn_m_1024": (250, 500, 1000, 2000)}
CHANGES: dict[str, Iterable[tuple[str, dict[str, Any]]]] = {
    "RoIs that train": [(str(b), {"batch": b}) for b in (32, 64, 128, 256, 512)],
    "images a step": [(str(n), {"images": n, "batch": 64 * n}) for n in (1, 2, 4)],
    "pixels": [(f"{h} x {w}", {"side": (h, w)}) for h, w in ((240, 320), (360, 480), (480, 640), (600, 800))],
}
PLOT = Path(__file__).parents[1] / "docs" / "cost.svg"


def measure_growth(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of an OHEM and an FRCN step, and their ratio; draws the one against R."""
    found = {f"{network}: RoIs an image": _against_rois(network, repeats) for network in ROIS}
    height, width, rois = SIZES["lite0"]
    for what, values in CHANGES.items():
        found[f"lite0: {what}"] = {
            label: _ratio_of(FastRcnnSteps("lite0", **{"rois": rois, "side": (height, width), **change}), repeats)
            for label, change in values
        }
    for what, rows in found.items():
        for label, row in rows.items():
            print(line(f"{what} {label}", row))
    draw(found)
    return found


def _against_rois(network: str, repeats: int) -> dict[str, dict[str, float]]:
    height, width, _ = SIZES[network]
    steps = FastRcnnSteps(network, 0, (height, width))
    rows = {}
    for rois in ROIS[network]:
        steps.rois = rois
        counted = 1 + steps.head_operations() / operations(lambda: steps.step("FRCN"))
        rows[str(rois)] = {**_ratio_of(steps, repeats), "counted ratio": counted}
    return rows


def _ratio_of(steps: FastRcnnSteps, repeats: int) -> dict[str, float]:
    found = turns({form: (lambda f=form: steps.step(f)) for form in ("FRCN", "OHEM")}, repeats)  # type: ignore[misc]
    return {**found.seconds(), **found.ratios("OHEM", "FRCN")}


def draw(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """The ratio, by CPU time, and its floor against R, as an SVG beside the documentation."""
    lines = {}
    for network in ROIS:
        rows = {int(r): row for r, row in found[f"{network}: RoIs an image"].items() if int(r) <= 2000}
        name = network.removesuffix("_1024")
        lines[name] = [(r, [row["CPU ratio"]]) for r, row in rows.items()]
        lines[f"{name}, counted"] = [(r, [row["counted ratio"]]) for r, row in rows.items()]
    svg = line_chart(lines, "RoIs an image", "cost of an OHEM step / FRCN step")
    head = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff;color:#222" '
    PLOT.write_text(svg.replace("<svg ", head, 1) + "\n")
