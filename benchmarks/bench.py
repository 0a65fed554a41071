"""What hard mining costs, and what everything around it does: one command, ratios within one process.

    python benchmarks/bench.py                                     # all parts that need no data
    python benchmarks/bench.py steps ranking --networks vgg16      # some
    python benchmarks/bench.py --data VOC@trainval --proposals trainval.mat --mmdet-python PYTHON

Works take turns, so that ratios hold on a machine that is not quiet; figures are medians of ``--repeats``. Each part
leaves ``results/PART.json``, or one in ``--results``, and keeps there what it does not measure anew. How long they take
is in README.md.

CPU ratios are of the CPU time of all threads, which do not spin while they wait for each other; they hold where other
processes take the cores away, too.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

import approximations
import evaluation
import growth
import memory
import peers
import reading
import steps
from ohem.training.run import machine
from subjects import APPROXIMATIONS, FORMS, SIZES

RESULTS = Path(__file__).parent / "results"
Options = argparse.Namespace
Part = Callable[[Options], dict[str, Any]]


def per_network(measure: Callable[..., Any], *own: str) -> Part:
    """A part that measures each of the networks asked for; ``own`` are further options it takes."""
    return lambda options: {
        network: measure(network, options.repeats, *(getattr(options, name) for name in own))
        for network in options.networks
        if network in SIZES
    }


PARTS: dict[str, Part] = {
    "ranking": per_network(steps.measure_ranking),
    "steps": lambda options: {name: steps.measure_steps(name, options.repeats) for name in options.networks},
    "shares": per_network(steps.measure_shares),
    "growth": lambda options: growth.measure_growth(options.repeats),
    "memory": lambda options: {
        **{network: memory.measure_memory(network) for network in options.networks},
        "RoIs an image": memory.measure_memory_growth(),
    },
    "peers": per_network(peers.measure_peers, "mmdet_python"),
    "savings": lambda options: {
        "vgg16": approximations.measure_savings("vgg16", options.repeats, options.approximations)
    },
    "evaluation": lambda options: evaluation.measure_evaluation(options.images),
    "overlaps": lambda options: {
        head: approximations.measure_overlaps(options.data, options.proposals, head, options.approximations)
        for head in approximations.HEADS
    },
    "reading": lambda options: reading.measure_reading(options.data, options.proposals),
}
NEED_DATA = ("overlaps", "reading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], help=f"of {', '.join(PARTS)}; all, when none is named"
    )
    parser.add_argument("--networks", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--approximations", nargs="+", choices=list(APPROXIMATIONS), default=list(APPROXIMATIONS))
    parser.add_argument("--images", type=int, default=50_000, help="of evaluation")
    parser.add_argument("--data", action="append", default=[], help=f"for {' and '.join(NEED_DATA)}")
    parser.add_argument("--proposals", action="append", default=[])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files; one for each machine")
    parser.add_argument("--mmdet-python", type=Path, help="of an environment with MMDetection, for peers")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; medians of {options.repeats}")
    for part in options.parts or PARTS:
        if part in NEED_DATA and not options.data:
            print(f"\n{part}: left out; it needs --data")
            continue
        print(f"\n{part}", flush=True)
        found = PARTS[part](options)
        options.results.mkdir(parents=True, exist_ok=True)
        file = options.results / f"{part}.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        stamp = {"date": str(date.today()), "load": os.getloadavg()[0], "machine": machine()}
        for name, value in found.items():
            rows = isinstance(value, dict)
            before[name] = {**before.get(name, {}), **value} if rows else value
        file.write_text(json.dumps({**before, **stamp}, indent=1) + "\n")


if __name__ == "__main__":
    main()
