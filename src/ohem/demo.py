"""``ohem demo``: the heuristic sampler and OHEM side by side, from the same start, on built-in data."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from ohem.comparison import HEADER, Arm, draw_curves, draw_detections, draw_hardest, draw_precision_recall
from ohem.data.builtin import make_builtin
from ohem.data.dataset import DetectionDataset, Proposals
from ohem.data.sources import load_dataset
from ohem.errors import OhemError
from ohem.evaluation.voc import evaluate_voc
from ohem.files import write_atomically
from ohem.judging import run_detector
from ohem.mining import mean_loss, score_images
from ohem.models.weights import load_detector
from ohem.opening import Reporter
from ohem.proposals.cache import ProposalCache, ProposalSetting, make_proposals
from ohem.training.run import Run

ARMS = {"random": "heuristic sampler", "hard": "OHEM"}
EARLY = 50
SHOWN_IMAGES = 4

_STDERR = 2
"""The descriptor: stdout is the demo's own answer's."""


def run_demo(
    folder: Path,
    *,
    iterations: int,
    seed: int,
    reporter: Reporter,
    quiet: bool = False,
    images: tuple[int, int] = (400, 200),
) -> list[Arm]:
    """Make the data, train both arms in processes of their own, measure them and write table and pictures.

    Finished parts are kept: called again after an interruption, it goes on.

    Args:
        folder: for data, runs and pictures.
        iterations: of each training.
        seed: of both.
        reporter: told of what goes on.
        quiet: whether the trainings, which tell of themselves on stderr, are not to.
        images: how many to train and to test on.

    Raises:
        OhemError: the extra ``ohem[demo]`` is missing, or the folder holds a demo with other settings.
    """
    data = make_builtin(
        folder / "data",
        train_images=images[0],
        test_images=images[1],
        progress=partial(reporter.progress, "drawing images"),
    )
    train_set, test_set = load_dataset([f"{data}@train"]), load_dataset([f"{data}@test"])
    cache = folder / "proposals.sqlite"
    make_proposals(
        [*train_set.records, *test_set.records],
        cache,
        ProposalSetting(),
        2,
        partial(reporter.progress, "selective search"),
    )
    for kind in ARMS:
        _train(folder / kind, kind, f"{data}@train", cache, iterations, seed, reporter, quiet)
    arms = [_measure(folder / kind, kind, train_set, test_set, ProposalCache(cache), reporter) for kind in ARMS]

    drawings = (
        partial(draw_curves, arms, folder / "curves.png"),
        partial(draw_precision_recall, arms, folder / "precision_recall.png"),
        partial(draw_detections, arms, test_set, folder / "detections.png"),
        partial(draw_hardest, arms, train_set.classes, folder / "hardest.png"),
    )
    for done, draw in enumerate(drawings, start=1):
        draw()
        reporter.progress("drawing what they learned", done, len(drawings))
    table = [dict(zip(HEADER, arm.row(), strict=True)) for arm in arms]
    write_atomically(folder / "table.json", json.dumps(table, indent=2) + "\n")
    return arms


def _train(
    folder: Path, kind: str, data: str, cache: Path, iterations: int, seed: int, reporter: Reporter, quiet: bool
) -> None:
    """The command that a user would type, in a process of its own, so that its memory is its own."""
    settings = [
        f"sampler={kind}",
        f"iterations={iterations}",
        f"seed={seed}",
        f"snapshot_every={min(EARLY, iterations)}",
    ]
    if folder.exists():
        run = Run.open(folder)
        recipe = run.recipe()
        if (recipe.iterations, recipe.seed) != (iterations, seed):
            raise OhemError(
                f"{folder}: found a run of {recipe.iterations} iterations, seed {recipe.seed};"
                f" allowed: the same ({iterations}, {seed} asked for), or another --out"
            )
        if run.weights_file.exists():
            reporter.say(f"{folder}: already trained to the end")
            return
        command = ["train", "--resume", str(folder)]
    else:
        command = ["train", "demo", *settings, "--data", data, "--proposals", str(cache), "--run", str(folder)]
    reporter.say(f"$ ohem {' '.join(command)}")
    told, manner = (subprocess.DEVNULL, ["--quiet"]) if quiet else (_STDERR, [])
    status = _finish(subprocess.Popen([sys.executable, "-m", "ohem", *command, *manner], stdout=told))
    if status:
        raise OhemError(f"{ARMS[kind]}: training stopped with exit code {status}; call ohem demo again to go on")


def _finish(training: subprocess.Popen[bytes]) -> int:
    """Its exit code. Ctrl-C reaches the training too: it is given the time to save, which subprocess.run would not."""
    try:
        return training.wait()
    except KeyboardInterrupt:
        training.wait()
        raise


def _measure(
    folder: Path,
    kind: str,
    train_set: DetectionDataset,
    test_set: DetectionDataset,
    proposals: Proposals,
    reporter: Reporter,
) -> Arm:
    run, name = Run(folder), ARMS[kind]
    detector, spec, _ = load_detector(run.weights_file)
    found = run_detector(detector, spec, test_set.records, proposals, device="cpu", workers=1, reporter=reporter)
    losses = [
        mean_loss(
            score_images(
                detector, spec, dataset.records, proposals, progress=lambda d, n: reporter.progress("all RoIs", d, n)
            )
        )
        for dataset in (train_set, test_set)
    ]
    shown = [record for record in train_set.records if len(record.boxes)][:SHOWN_IMAGES]
    early, late = (
        list(score_images(load_detector(file)[0], spec, shown, proposals))
        for file in (run.snapshot_file(min(EARLY, run.recipe().iterations)), run.weights_file)
    )
    return Arm(name, run.log(), evaluate_voc(test_set, found), found, losses[0], losses[1], (early, late))
