"""Training: it learns, it resumes to the bit, its arms are paired, and its folder explains itself."""

import json
import math
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ohem.data.loading import Draw, training_batches
from ohem.errors import OhemError
from ohem.files import next_folder
from ohem.models.weights import load_detector
from ohem.recipes.recipe import Recipe
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import measure, train
from ohem.training.run import Run, Sources, fingerprint
from shapes import PRETRAINED, make_shapes, open_shapes, small_recipe


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes") / "data")


def start(folder: Path, recipe: Recipe, images: AnnotatedImages) -> Run:
    return Run.create(folder, recipe, Sources(("data",)), images.dataset, "fingerprint")


@pytest.mark.parametrize("sampler", ["hard", "random", "all"])
def test_it_learns(sampler: str, shapes: Path, tmp_path: Path) -> None:
    images, held_out = (AnnotatedImages(*open_shapes(shapes, split)) for split in ("train", "test"))
    recipe = small_recipe(*PRETRAINED, f"sampler={sampler}", "iterations=80")
    run = start(tmp_path / "run", recipe, images)
    before = measure(new_detector(recipe, images), recipe, held_out, workers=0)
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)
    detector, _, classes = load_detector(run.weights_file)
    assert classes == ("disc", "square", "triangle")
    assert before < 0.2
    assert measure(detector, recipe, held_out, workers=0) > 0.7
    losses = [record["loss_selected_rois"] for record in run.log()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("sampler", "workers"), [("hard", 1), ("random", 0)])
def test_interrupted_training_ends_in_the_same_weights(
    sampler: str, workers: int, shapes: Path, tmp_path: Path
) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe(
        f"sampler={{kind: {sampler}, rois_per_image: 8}}",
        "iterations=14",
        "detector.head.dropout=0.5",
        "checkpoint_every=4",
    )
    whole = start(tmp_path / "whole", recipe, images)
    assert train(whole, recipe, new_detector(recipe, images), images, workers=0)

    def interrupt(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 6:
            signal.raise_signal(signal.SIGINT)

    broken = start(tmp_path / "broken", recipe, images)
    assert not train(broken, recipe, new_detector(recipe, images), images, workers=workers, observe=interrupt)
    assert not broken.weights_file.exists()
    assert train(broken, recipe, new_detector(recipe, images), images, workers=workers)
    assert broken.weights_file.read_bytes() == whole.weights_file.read_bytes()
    assert [record["iteration"] for record in broken.log()] == [record["iteration"] for record in whole.log()]


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_forgets_later_log_records(
    shapes: Path, tmp_path: Path
) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe("iterations=12", "checkpoint_every=4", "log_every=2")
    whole = start(tmp_path / "whole", recipe, images)
    train(whole, recipe, new_detector(recipe, images), images, workers=0)

    def die(record: Mapping[str, Any]) -> None:
        if record["kind"] == "train" and record["iteration"] == 10:
            raise RuntimeError("killed")

    broken = start(tmp_path / "broken", recipe, images)
    with pytest.raises(RuntimeError, match="killed"):
        train(broken, recipe, new_detector(recipe, images), images, workers=0, observe=die)
    assert broken.log()[-1]["iteration"] == 10
    train(broken, recipe, new_detector(recipe, images), images, workers=0)
    assert broken.weights_file.read_bytes() == whole.weights_file.read_bytes()
    measured = [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_mb")} for r in broken.log()]
    assert measured == [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_mb")} for r in whole.log()]


def test_samplers_start_equal(shapes: Path) -> None:
    """By the recipe's seed, whatever was drawn before."""
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    states = []
    for sampler in ("hard", "random"):
        torch.manual_seed(len(states))
        states.append(new_detector(small_recipe(f"sampler={sampler}"), images).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_image_comes_once_an_epoch_and_a_resumed_order_is_the_rest_of_the_first() -> None:
    whole = training_batches(7, 2, range(14), seed=3, flip=True)
    draws = [draw for batch in whole for draw in batch]
    for epoch in range(4):
        assert sorted(draw.index for draw in draws[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert training_batches(7, 2, range(5, 14), seed=3, flip=True) == whole[5:]
    assert training_batches(7, 2, range(14), seed=4, flip=True) != whole
    assert {draw.flip for draw in draws} == {True, False}
    scaled = training_batches(7, 2, range(14), seed=3, flip=True, scales=(480, 576))
    assert {draw.shortest for batch in scaled for draw in batch} == {480, 576}
    assert [[(d.index, d.flip) for d in b] for b in scaled] == [[(d.index, d.flip) for d in b] for b in whole]
    assert all(draw == Draw(draw.index) for batch in training_batches(7, 2, range(9), 3, flip=False) for draw in batch)


# Samplers that draw at random have a stream for each pass, and so draw otherwise in two passes than in one.
METHODS = [
    ("sampler.rois_per_image=16",),
    ("sampler={kind: stratified, rois_per_image: 16}",),
    ("sampler={kind: quota, rois_per_image: 16}",),
    ("sampler=all", "loss=focal"),
    ("sampler=all", "loss=ghm"),
    ("sampler.rois_per_image=16", "mining=loss_layer"),
]


@pytest.mark.parametrize("method", METHODS, ids=" ".join)
def test_accumulated_images_give_the_batch_s_weights(method: tuple[str, ...], shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    weights = []
    for accumulate in ("true", "false"):
        settings = ("iterations=2", f"accumulate={accumulate}", "optimizer.kind=sgd", "optimizer.lr=0.001")
        recipe = small_recipe(*method, *settings, "log_every=1")
        run = start(tmp_path / accumulate, recipe, images)
        assert train(run, recipe, new_detector(recipe, images), images, workers=0)
        weights.append(load_file(run.weights_file))
        for record in run.log():
            assert all(
                math.isfinite(record[name]) for name in ("loss_cls", "loss_box", "loss_all_rois") if record[name]
            )
            assert record["loss_cls"] > 0
    for name, tensor in weights[0].items():
        assert tensor.isfinite().all()
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-6)


def test_both_forms_of_mining_end_in_the_same_weights(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    weights, logs = [], []
    for mining in ("read_only", "loss_layer"):
        recipe = small_recipe(f"mining={mining}", "iterations=3", "optimizer.kind=sgd", "optimizer.lr=0.001")
        run = start(tmp_path / mining, recipe, images)
        train(run, recipe, new_detector(recipe, images), images, workers=0)
        weights.append(load_file(run.weights_file))
        logs.append(run.log()[-1])
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-6)
    for name in ("loss_selected_rois", "loss_all_rois", "foreground_share"):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-4)
    assert logs[0]["seconds"]["ranking"] > 0
    assert logs[1]["seconds"]["ranking"] == 0


def test_the_log_keeps_selected_and_all_rois_apart(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    hard = small_recipe("iterations=6", "log_every=2")
    run = start(tmp_path / "hard", hard, images)
    train(run, hard, new_detector(hard, images), images, workers=0)
    for record in run.log():
        # The hardest 16 of about 60 RoIs cost more than the average RoI.
        assert record["loss_selected_rois"] > record["loss_all_rois"] > 0
        assert record["seconds"]["ranking"] > 0
        assert 0 <= record["foreground_share"] <= 1
        assert record["selected_per_image"] <= 16 < record["candidates_per_image"]

    random = small_recipe("sampler=random", "iterations=6", "log_every=2", "all_rois_every=4")
    run = start(tmp_path / "random", random, images)
    train(run, random, new_detector(random, images), images, workers=0)
    # Measured in the steps 0 and 4, which fall into the first and the third window of two.
    assert [record["loss_all_rois"] is not None for record in run.log()] == [True, False, True]
    assert [record["seconds"]["measuring"] > 0 for record in run.log()] == [True, False, True]
    assert all(record["seconds"]["ranking"] == 0 for record in run.log())


def test_measuring_all_rois_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    files = []
    for every in (1, 1000):
        recipe = small_recipe("sampler=random", "iterations=5", f"all_rois_every={every}", "detector.head.dropout=0.5")
        run = start(tmp_path / str(every), recipe, images)
        train(run, recipe, new_detector(recipe, images), images, workers=0)
        files.append(run.weights_file.read_bytes())
    assert files[0] == files[1]


def test_validation_keeps_the_best_weights_beside_the_last(shapes: Path, tmp_path: Path) -> None:
    images, held_out = (AnnotatedImages(*open_shapes(shapes, split)) for split in ("train", "test"))
    recipe = small_recipe("iterations=8", "evaluation.every=4", "snapshot_every=4", "optimizer.lr=0.003")
    run = start(tmp_path / "run", recipe, images)
    train(run, recipe, new_detector(recipe, images), images, held_out, workers=0)
    measured = {r["iteration"]: r["voc07"] for r in run.log() if r["kind"] == "validation"}
    assert list(measured) == [4, 8]
    best = max(measured, key=lambda iteration: (measured[iteration], -iteration))
    assert run.best_file.read_bytes() == run.snapshot_file(best).read_bytes()
    assert run.weights_file.read_bytes() == run.snapshot_file(8).read_bytes()


def test_fine_tuning_starts_from_another_run(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe("iterations=2")
    first = start(tmp_path / "first", recipe, images)
    train(first, recipe, new_detector(recipe, images), images, workers=0)
    trained = load_detector(first.weights_file)[0].state_dict()
    for source in (first.folder, first.weights_file):
        started = new_detector(recipe.model_copy(update={"init_from": source}), images).state_dict()
        for name, tensor in trained.items():
            torch.testing.assert_close(started[name], tensor)


def test_empirical_delta_statistics_reach_the_detector(shapes: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    detector = new_detector(small_recipe("detector.delta_stats=empirical"), images)
    # Mirrored examples make the mean shift along x vanish; the boxes are jittered by 5 px of about 32.
    assert torch.allclose(detector.delta_mean[1:, 0], torch.zeros(3), atol=1e-6)
    assert ((detector.delta_std[1:] > 0.02) & (detector.delta_std[1:] < 0.4)).all()


def test_a_run_is_never_overwritten(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe()
    start(tmp_path / "run", recipe, images)
    with pytest.raises(OhemError, match="found something there already"):
        start(tmp_path / "run", recipe, images)
    assert next_folder(tmp_path / "run") == tmp_path / "run-2"


def test_a_run_tells_what_it_was(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe("seed=7")
    run = Run.create(tmp_path / "run", recipe, Sources(("a@b",), proposals=("p.mat",)), images.dataset, "abc")
    opened = Run.open(tmp_path / "run")
    assert opened.recipe() == recipe
    assert opened.sources() == Sources(("a@b",), proposals=("p.mat",))
    info = json.loads(run.info_file.read_text())
    assert info["seed"] == 7
    assert info["data"]["fingerprint"] == "abc"
    assert info["machine"]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert info["machine"]["processor"].endswith(f"({torch.backends.cpu.get_cpu_capability()})")  # names may be shared


def test_the_fingerprint_follows_annotations_and_proposals(shapes: Path) -> None:
    dataset, proposals = open_shapes(shapes, "train")
    same = fingerprint(dataset, proposals)
    assert fingerprint(*open_shapes(shapes, "train")) == same
    first = dataset.records[0].id
    assert fingerprint(dataset, {**proposals, first: proposals[first][1:]}) != same
    moved = [*dataset.records]
    moved[0].boxes[0, 0] += 1
    assert fingerprint(dataset, proposals) != same
    moved[0].boxes[0, 0] -= 1


def test_a_checkpoint_of_before_there_were_averages_and_scales_goes_on(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe("iterations=6", "checkpoint_every=3")
    run = start(tmp_path / "run", recipe, images)
    detector = new_detector(recipe, images)

    def die(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train(run, recipe, detector, images, workers=0, observe=die)
    before = {"format", "iteration", "best", "detector", "optimizer"}
    assert torch.load(run.checkpoint_file, weights_only=True).keys() == before
    changed = recipe.model_copy(update={"ema": 0.9})
    with pytest.raises(
        OhemError, match="found the state of detector, optimizer; allowed: average, detector, optimizer"
    ):
        train(run, changed, new_detector(changed, images), images, workers=0)
    assert train(run, recipe, new_detector(recipe, images), images, workers=0)


def test_a_foreign_or_damaged_checkpoint_is_refused(shapes: Path, tmp_path: Path) -> None:
    images = AnnotatedImages(*open_shapes(shapes, "train"))
    recipe = small_recipe("iterations=4")
    run = start(tmp_path / "run", recipe, images)
    run.checkpoint_file.parent.mkdir()
    run.checkpoint_file.write_bytes(b"not a checkpoint")
    with pytest.raises(OhemError, match=r"last\.pt: found no readable checkpoint"):
        train(run, recipe, new_detector(recipe, images), images, workers=0)
    torch.save({"format": 99}, run.checkpoint_file)
    with pytest.raises(OhemError, match=r"format: found 99; allowed: 2"):
        train(run, recipe, new_detector(recipe, images), images, workers=0)
