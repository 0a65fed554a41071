"""OHEM against the heuristic sampler on six animal and person classes of VOC 2012, paired seeds, two CPU cores.

    python benchmarks/animals.py DATA --seeds 3
    python benchmarks/animals.py DATA --seeds 3 --recipe fasterrcnn_lite0
    python benchmarks/animals.py DATA --seeds 5 --arm hard --arm half sampler=hard ranking=half

An arm is a name and overrides of the recipe; the first one named is what the others are compared with. DATA is a VOC
folder with the splits trainval and test, and for lite0 selective-search proposals of each in
DATA/selective_search/{trainval,test}.mat; Faster R-CNN makes its own, and trains for 800 steps. Runs go into
runs/animals; finished ones are kept, an interrupted one is resumed, so the command may be stopped and called again. One
small JSON a run goes into benchmarks/results/animals, those of Faster R-CNN into animals_fasterrcnn_lite0.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import ohem
from ohem.console import Console
from ohem.evaluation.voc import evaluate_voc
from ohem.judging import run_detector
from ohem.mining import mean_loss, score_images
from ohem.models.spec import AnyDetectorSpec
from ohem.models.weights import load_detector
from ohem.opening import open_dataset, open_proposals
from ohem.recipes.recipe import DataSpec
from ohem.training.run import Run

CLASSES = ("cat", "cow", "dog", "horse", "person", "sheep")
RESULTS = Path(__file__).parent / "results"
FOLDERS = {"lite0": "animals", "fasterrcnn_lite0": "animals_fasterrcnn_lite0"}
OVERRIDES = [f"data.classes=[{','.join(CLASSES)}]", "data.other_classes=drop"]
ARMS = {
    "lite0": {"random": ["sampler=random"], "hard": ["sampler=hard"]},
    # bg_lo 0.1 is for selective search's thousands of boxes; Faster R-CNN draws background from all proposals.
    "fasterrcnn_lite0": {"random": ["sampler={kind: random, bg_lo: 0.0}"], "hard": ["sampler=hard"]},
}
SETTINGS: dict[str, tuple[str, ...]] = {"lite0": (), "fasterrcnn_lite0": ("iterations=800",)}


def train(data: str, name: str, overrides: Sequence[str], folder: Path, console: Console) -> None:
    if folder.exists():
        ohem.resume(folder, reporter=console)
        return
    recipe = ohem.load_recipe(name, [*OVERRIDES, *SETTINGS[name], *overrides])
    proposals = proposal_files(data, "trainval", recipe.detector)
    ohem.train(recipe, ohem.Sources((f"{data}@trainval",), proposals=proposals), folder=folder, reporter=console)


def proposal_files(data: str, split: str, spec: AnyDetectorSpec) -> tuple[str, ...]:
    return (f"{data}/selective_search/{split}.mat",) if spec.given_proposals else ()


def measure(data: str, folder: Path, console: Console) -> dict[str, Any]:
    run = Run.open(folder)
    recipe, log = run.recipe(), [record for record in run.log() if record["kind"] == "train"]
    dataset = open_dataset([f"{data}@test"], DataSpec(classes=CLASSES, other_classes="drop"), console)
    detector, spec, _ = load_detector(run.weights_file)
    proposals = open_proposals(dataset, proposal_files(data, "test", spec), spec.given_proposals, 1, console)
    found = run_detector(detector, spec, dataset.records, proposals, device="cpu", workers=1, reporter=console)
    voc = evaluate_voc(dataset, found)
    return {
        "sampler": type(recipe.sampler).__name__,
        "seed": recipe.seed,
        "iterations": recipe.iterations,
        "mAP@0.5, 11-point": voc.mean_ap,
        "mAP@0.5, area": evaluate_voc(dataset, found, method="area").mean_ap,
        "mAP@0.7, 11-point": evaluate_voc(dataset, found, iou_threshold=0.7).mean_ap,
        "mean loss over all test RoIs": mean_loss(score_images(detector, spec, dataset.records, proposals)),
        "training minutes": sum(sum(r["seconds"].values()) for r in log) * recipe.log_every / 60,
        "seconds a step": mean(sum(record["seconds"].values()) for record in log),
        "peak memory, MB": max(record["peak_memory_mb"] for record in log),
        "per class, 11-point": dict(voc.rows()[:-1]),
        "data fingerprint": run.info()["data"]["fingerprint"],
        "machine": run.info()["machine"],
        "date": date.today().isoformat(),
    }


def summarise(results: dict[str, dict[int, dict[str, Any]]]) -> None:
    base, *others = results
    first = next(iter(results[base].values()))
    for other in others:
        seeds = sorted(set(results[base]) & set(results[other]))
        rows = []
        for name in (name for name, value in first.items() if isinstance(value, float)):
            factor = 100 if name.startswith("mAP") else 1
            arms = [[factor * results[arm][seed][name] for seed in seeds] for arm in (base, other)]
            gains = [b - a for a, b in zip(*arms, strict=True)]
            spread = f"{stdev(gains):.2f}" if len(gains) > 1 else "-"
            rows.append((name, *(" ".join(f"{v:.3g}" for v in arm) for arm in arms), f"{mean(gains):+.2f}", spread))
        title = f"seeds {seeds}; {platform.processor() or platform.machine()}"
        Console().table(title, ("", base, other, "mean difference", "its std"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", choices=tuple(FOLDERS), default="lite0")
    parser.add_argument(
        "--arm", nargs="+", action="append", metavar=("NAME", "FIELD=VALUE"), help="default: both samplers"
    )
    parser.add_argument("--only", help="run one arm; two processes may share the machine")
    parser.add_argument("--runs", type=Path, help="default: runs/animals, or runs/animals_fasterrcnn_lite0")
    arguments = parser.parse_args()
    known = ARMS[arguments.recipe]
    arms = {name: overrides or known.get(name, []) for name, *overrides in arguments.arm or []} or known
    if arguments.only and arguments.only not in arms:
        parser.error(f"--only: found {arguments.only}; allowed: {', '.join(arms)}")
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    kept = RESULTS / FOLDERS[arguments.recipe]
    runs = arguments.runs or Path("runs") / FOLDERS[arguments.recipe]
    with Console() as console:
        for seed in range(arguments.seeds):
            for arm in [arguments.only] if arguments.only else arms:
                file, folder = kept / f"{arm}-{seed}.json", runs / f"{arm}-{seed}"
                if not file.exists():
                    train(arguments.data, arguments.recipe, [*arms[arm], f"seed={seed}"], folder, console)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(measure(arguments.data, folder, console), indent=1) + "\n")
                results[arm][seed] = json.loads(file.read_text())
    if not arguments.only:
        summarise(results)


if __name__ == "__main__":
    main()
