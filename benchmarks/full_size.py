"""A training step at the paper's size: 600 x 800 pixels, 2,000 proposals, SGD with momentum, one image a forward pass.

    python benchmarks/full_size.py --steps 3

Each network and sampler runs in a process of its own; the first step is not counted. Random images and weights: the
arithmetic does not depend on them.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

import torch

from ohem.console import Console
from ohem.models.weights import build_detector
from ohem.recipes.recipe import load_recipe
from ohem.training.loop import peak_memory_mb
from ohem.training.optimizer import build_optimizer

NETWORKS, SAMPLERS = ("vgg16", "vgg_cnn_m_1024"), ("random", "hard")


def run(network: str, sampler: str, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    recipe = load_recipe(network, [f"sampler={sampler}"])
    detector = build_detector(recipe.detector, 20).train()
    detector.sampler = recipe.sampler
    optimizer = build_optimizer(detector, recipe.optimizer)
    corner = torch.rand(2000, 2) * torch.tensor([700.0, 500.0])
    proposals = torch.cat([corner, corner + 16 + torch.rand(2000, 2) * 84], dim=1)
    boxes = torch.tensor([[100.0, 100, 300, 300], [400, 200, 700, 500]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 7])}
    total, ranking = [], []
    for _ in range(1 + steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        step = detector.training_step([torch.rand(3, 600, 800)], [proposals], [target])
        torch.autograd.backward(torch.stack(list(step.losses.values())).sum())
        optimizer.step()
        total.append(time.perf_counter() - start)
        ranking.append(step.score.seconds)
    return {
        "seconds": median(total[1:]),
        "ranking": median(ranking[1:]),
        "memory": peak_memory_mb(torch.device("cpu")) / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "SAMPLER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run(*arguments.one, arguments.steps)))
        return
    rows = []
    for network in NETWORKS:
        measured = []
        for sampler in SAMPLERS:
            command = [sys.executable, __file__, "--steps", str(arguments.steps), "--one", network, sampler]
            measured.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            one, base = measured[-1], measured[0]
            ratio = f"{one['seconds'] / base['seconds']:.2f}"
            rows.append((f"{network}, {sampler}", *(f"{value:.2f}" for value in one.values()), ratio))
    header = ("", "s/image", "of it ranking", "peak GB", "time ratio")
    Console().table(f"600 x 800 px, 2,000 RoIs, {torch.get_num_threads()} threads", header, rows)


if __name__ == "__main__":
    main()
