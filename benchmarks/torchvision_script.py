"""What the one line costs in torchvision's own training script: examples/train_torchvision.py with and without it.

    python benchmarks/torchvision_script.py COCO

COCO is a folder with instances.json and images/. Three arms start from the same random weights and see the same images,
flipped alike: torchvision's random choice of 512 RoIs an image, the hardest 128, the hardest 512. They take turns, one
step each, so that whatever else the machine does falls on all of them alike. One thread; nothing is downloaded. The
network learns next to nothing in so few steps: this measures time, and that losses fall, not what OHEM is worth.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

import ohem
from ohem.console import Console
from ohem.training.run import machine

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))
from train_torchvision import CocoBoxes, train  # noqa: E402

ARMS = {
    "without": None,
    "hardest 128": ohem.HardSampler(rois_per_image=128),
    "hardest 512": ohem.HardSampler(rois_per_image=512),
}
RESULT = ROOT / "benchmarks" / "results" / "torchvision_script.json"
FIRST_STEPS = 3
"""Not timed: memory is allocated and libraries are loaded."""

Record = dict[str, Any]


class Arm:
    """One run of the script with a random stream of its own, so that runs can take turns."""

    def __init__(self, coco: Path, sampler: ohem.Sampler | None, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        data = CocoBoxes(coco / "instances.json", coco / "images")
        # With a worker, order and flips follow from this generator alone, whatever the sampler draws.
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(data, batch_size=2, shuffle=True, num_workers=1, collate_fn=list, generator=order)
        model = fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, num_classes=len(data.labels) + 1
        )
        if sampler:
            ohem.use_sampler(model, sampler)
        epochs = -(-steps // len(loader))
        self.steps: Iterator[dict[str, float]] = train(model, loader, epochs, 0.0025, [epochs], warm_up=10)
        self.random_state = torch.get_rng_state()
        self.log: list[Record] = []

    def step(self) -> None:
        torch.set_rng_state(self.random_state)
        started = time.perf_counter()
        losses = next(self.steps)
        self.log.append({"seconds": time.perf_counter() - started, **losses})
        self.random_state = torch.get_rng_state()


def summary(logs: dict[str, list[Record]]) -> dict[str, Record]:
    """Of each arm the median time of a step, its ratio to the arm without, and mean losses at both ends."""
    seconds = {name: [record["seconds"] for record in log[FIRST_STEPS:]] for name, log in logs.items()}
    pairs = {name: zip(times, seconds["without"], strict=True) for name, times in seconds.items()}
    return {
        name: {
            "seconds a step, median": median(seconds[name]),
            "time / without, median of turns": median(mine / plain for mine, plain in pairs[name]),
            **{
                f"{loss}, {place} ten steps": mean(record[loss] for record in part)
                for loss in list(log[0])[1:]
                for place, part in (("first", log[:10]), ("last", log[-10:]))
            },
        }
        for name, log in logs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("coco", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = [os.getloadavg()[0]]
    arms = {name: Arm(options.coco, sampler, options.seed, options.steps) for name, sampler in ARMS.items()}
    for _ in range(options.steps):
        for arm in arms.values():
            arm.step()
    load.append(os.getloadavg()[0])
    logs = {name: arm.log for name, arm in arms.items()}
    table = summary(logs)
    rows = [(what, *(column[what] for column in table.values())) for what in table["without"]]
    Console().table(f"{options.steps} steps of two images, seed {options.seed}", ("", *table), rows)
    about = {"steps": options.steps, "seed": options.seed, "date": date.today().isoformat(), "machine": machine()}
    RESULT.write_text(json.dumps({**about, "load before and after": load, "arms": table, "log": logs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
