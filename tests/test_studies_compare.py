"""``ohem compare``: any evaluated runs, paired by seed."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ohem
from ohem.errors import OhemError
from ohem.recipes.recipe import load_recipe
from ohem.studies.compare import METRICS, compare
from shapes import make_shapes
from test_studies import SMALL


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four evaluated runs, of two samplers and two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    shapes = make_shapes(folder / "data", train=8, test=4)
    (folder / "small.yaml").write_text(SMALL)
    for sampler in ("random", "hard"):
        for seed in (0, 1):
            recipe = load_recipe(str(folder / "small.yaml"), [f"sampler={sampler}", f"seed={seed}", "iterations=2"])
            run = folder / f"{sampler}-{seed}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OHEM_CACHE", str(folder / "cache"))
                ohem.train(recipe, ohem.Sources((f"{shapes}@train",)), folder=run, workers=0)
                ohem.evaluate(run, [f"{shapes}@test"], workers=0)
    return folder


def change(run: Path, **numbers: float) -> None:
    path = run / "evaluation/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["voc07"]["mean_ap"] = numbers["voc07"]
    path.write_text(json.dumps(metrics))


def test_arms_are_found_and_paired(runs: Path) -> None:
    for name, value in (("random-0", 0.5), ("random-1", 0.6), ("hard-0", 0.52), ("hard-1", 0.64)):
        change(runs / name, voc07=value)
    found = compare([runs / name for name in ("random-0", "hard-1", "hard-0", "random-1")])
    assert "sampler.kind=random" in found.arms[0].label
    assert "sampler.kind=hard" in found.arms[1].label
    assert "seed" not in found.arms[0].label.replace("sampler", "")
    gain = found.differences[0][METRICS[0]]
    assert gain is not None
    assert gain[0].mean == pytest.approx(3.0)
    assert gain[1] == 2
    assert found.warnings == ()


def test_runs_that_do_not_compare(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(OhemError, match="two recipes or more"):
        compare([runs / "hard-0", runs / "hard-1"])
    with pytest.raises(OhemError, match="a second run of seed 0"):
        compare([runs / "random-0", runs / "hard-0", runs / "hard-0"])
    with pytest.raises(OhemError, match=r"found no run\.json"):
        compare([runs / "random-0", tmp_path])


def test_runs_on_other_data_are_refused(runs: Path) -> None:
    path = runs / "hard-1/run.json"
    before = path.read_text()
    info = json.loads(before)
    info["data"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(info))
    with pytest.raises(OhemError, match="found a run trained on other data"):
        compare([runs / "random-1", runs / "hard-1"])
    path.write_text(before)


def test_a_run_without_evaluation_says_how(runs: Path) -> None:
    folder = runs / "hard-0"
    (folder / "evaluation").rename(folder / "away")
    (folder / "away/metrics.json").rename(folder / "metrics.txt")
    with pytest.raises(OhemError, match="ohem evaluate"):
        compare([runs / "random-0", folder])
    (folder / "metrics.txt").rename(folder / "away/metrics.json")
    (folder / "away").rename(folder / "evaluation")


def test_other_machines_are_warned_of(runs: Path) -> None:
    path = runs / "hard-1/run.json"
    before = path.read_text()
    info = json.loads(before)
    info["machine"]["threads"] = 64
    path.write_text(json.dumps(info))
    assert "threads" in compare([runs / "random-1", runs / "hard-1"]).warnings[0]
    path.write_text(before)


@contextmanager
def changed(run: Path, file: str, change: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """While this is open, a JSON file of a run says something else."""
    path = run / file
    before = path.read_text()
    value = json.loads(before)
    change(value)
    path.write_text(json.dumps(value))
    try:
        yield
    finally:
        path.write_text(before)


def test_how_detectors_were_used_must_agree_and_how_they_were_trained_need_not(runs: Path) -> None:
    pair = [runs / "random-1", runs / "hard-1"]
    metrics = "evaluation/metrics.json"
    with (
        changed(pair[1], metrics, lambda m: m.update(weights="best.safetensors")),
        pytest.raises(OhemError, match=r'weights: found a run evaluated with "best.safetensors"; allowed: '),
    ):
        compare(pair)
    with (
        changed(pair[1], metrics, lambda m: m["settings"]["image"].update(test_scales=[50, 70])),
        pytest.raises(OhemError, match=r"image.test_scales: found a run evaluated with \[50, 70\]; allowed: \[\]"),
    ):
        compare(pair)
    with changed(pair[1], metrics, lambda m: m["settings"]["image"].update(train_scales=[50, 70])):
        assert len(compare(pair).arms) == 2


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda m: m.update(settings=[1]), "settings: found [1]"),
        (lambda m: m["settings"].update(image=3), "settings.image: found 3"),
        (lambda m: m["coco"].update(AP="high"), "coco.AP: found 'high'"),
        (lambda m: m["voc07"].pop("mean_ap"), "voc07.mean_ap: found nothing"),
        (lambda m: m.pop("fingerprint"), "fingerprint: found nothing"),
    ],
)
def test_an_evaluation_that_says_something_else_is_named(runs: Path, change: Any, found: str) -> None:
    with (
        changed(runs / "hard-1", "evaluation/metrics.json", change),
        pytest.raises(OhemError, match=re.escape(f"metrics.json: {found}; allowed: an evaluation of this version")),
    ):
        compare([runs / "random-1", runs / "hard-1"])


def test_a_training_that_is_not_finished_is_refused(runs: Path) -> None:
    weights = runs / "hard-1/weights.safetensors"
    weights.rename(runs / "away")
    with pytest.raises(OhemError, match="found a training that is not finished; allowed: ohem train --resume"):
        compare([runs / "random-1", runs / "hard-1"])
    (runs / "away").rename(weights)


def test_a_part_of_the_data_is_another_with_each_seed_and_one_within_a_seed(runs: Path, tmp_path: Path) -> None:
    for sampler in ("random", "hard"):
        for seed in (0, 1):
            copy = tmp_path / f"{sampler}-{seed}"
            shutil.copytree(runs / copy.name, copy)
            recipe = copy / "recipe.yaml"
            recipe.write_text(recipe.read_text().replace("fraction: 1.0", "fraction: 0.5"))
            assert "fraction: 0.5" in recipe.read_text()
            info = json.loads((copy / "run.json").read_text())
            info["data"]["fingerprint"] = str(seed) * 64
            (copy / "run.json").write_text(json.dumps(info))
    four = sorted(path for path in tmp_path.iterdir())
    assert len(compare(four).arms) == 2
    with (
        changed(four[0], "run.json", lambda info: info["data"].update(fingerprint="f" * 64)),
        pytest.raises(OhemError, match="found a run trained on other data"),
    ):
        compare(four)
