"""What may befall a run: it is killed, its disk fills, its data change or move. Nothing is lost, nothing half is whole."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ohem.errors import OhemError
from ohem.files import atomic_writer, write_atomically
from ohem.training.beginning import AnnotatedImages, new_detector
from ohem.training.loop import train
from ohem.training.run import Run, Sources
from shapes import make_shapes, open_shapes, small_recipe
from test_cli import SMALL, ohem

pytestmark = pytest.mark.slow

FAULTS = Path(__file__).parents[1] / "benchmarks/faults.py"


def test_killed_at_random_moments_and_at_files_it_ends_in_the_same_bytes() -> None:
    """The short form of the benchmark."""
    command = [sys.executable, str(FAULTS), "--kills", "4", "--works", "train,propose", "--kills-only"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 kills, ") == 2
    assert done.stdout.count("2 ended in the same bytes (") == 2


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    return make_shapes(tmp_path / "data", train=6, test=2)


def interrupted(run: Run, images: AnnotatedImages, recipe: Any) -> None:
    def interrupt(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 2:
            signal.raise_signal(signal.SIGINT)

    assert not train(run, recipe, new_detector(recipe, images), images, workers=0, observe=interrupt)


def test_a_run_that_moved_with_its_data_goes_on_evaluates_and_compares(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        *SMALL,
        "iterations=3",
        "checkpoint_every=1",
        "--workers",
        0,
        "--data",
        "data@train",
        "--val",
        "data@test",
    ]
    assert ohem("train", "lite0", *settings, "--run", "whole") == 0
    shutil.copytree("whole", "broken")
    torch.save({**torch.load("broken/checkpoints/last.pt", weights_only=True)}, "broken/checkpoints/last.pt")
    for name in ("weights.safetensors", "best.safetensors"):
        Path("broken", name).unlink()

    elsewhere = tmp_path / "another/machine"
    elsewhere.mkdir(parents=True)
    Path("broken").rename(elsewhere / "run")
    data.rename(elsewhere / "pictures")
    os.chdir(elsewhere)
    capsys.readouterr()
    assert ohem("train", "--resume", "run", "--workers", 0) == 2
    assert "where data moved: ohem train --resume run --data THERE" in capsys.readouterr().err
    moved = ["--data", "pictures@train", "--val", "pictures@test"]
    assert ohem("train", "--resume", "run", *moved, "--workers", 0) == 0
    assert Path("run/weights.safetensors").read_bytes() == (tmp_path / "whole/weights.safetensors").read_bytes()
    assert ohem("evaluate", "run", "--data", "pictures@test", "--workers", 0) == 0

    annotation = next(Path("pictures/Annotations").glob("train*"))
    annotation.write_text(annotation.read_text().replace("square", "disc").replace("triangle", "disc"))
    Path("run/weights.safetensors").unlink()
    assert ohem("train", "--resume", "run", *moved, "--workers", 0) == 2
    assert "found other images, annotations or proposals" in capsys.readouterr().err


def test_a_run_s_folder_holds_no_path_but_those_that_the_user_gave(data: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "iterations=1", "--workers", 0, "--data", "data@train", "--val", "data@test"]
    assert ohem("train", "lite0", *settings, "--run", "run") == 0
    assert ohem("evaluate", "run", "--data", "data@test", "--workers", 0) == 0
    for path in Path("run").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_number_of_workers_changes_nothing_with_and_without_interruption(
    workers: int, data: Path, tmp_path: Path
) -> None:
    images = AnnotatedImages(*open_shapes(data, "train"))
    recipe = small_recipe("iterations=5", "detector.head.dropout=0.5", "detector.image.train_scales=[60,72]")
    runs = [Run.create(tmp_path / n, recipe, Sources(("d",)), images.dataset, "") for n in ("a", "b", "c")]
    assert train(runs[0], recipe, new_detector(recipe, images), images, workers=0)
    assert train(runs[1], recipe, new_detector(recipe, images), images, workers=workers)
    interrupted(runs[2], images, recipe)
    assert train(runs[2], recipe, new_detector(recipe, images), images, workers=workers)
    weights = {run.weights_file.read_bytes() for run in runs}
    assert len(weights) == 1


def replaced(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("meddle", [Path.unlink, replaced, lambda path: os.utime(path, ns=(0, 0))])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_changes_on_the_way_stops_the_run(
    meddle: Callable[[Path], object], workers: int, data: Path, tmp_path: Path
) -> None:
    images = AnnotatedImages(*open_shapes(data, "train"))
    recipe = small_recipe("iterations=9", "images_per_step=1")
    run = Run.create(tmp_path / "run", recipe, Sources(("d",)), images.dataset, "")
    image = images.dataset.records[3].path

    def change(record: Mapping[str, Any]) -> None:
        if record["kind"] == "progress" and record["done"] == 1:
            meddle(image)

    # Six steps are an epoch, in which each image comes; workers have read two images ahead at most.
    with pytest.raises(OhemError, match=rf"{image.name}: found another file than at the beginning, or none"):
        train(run, recipe, new_detector(recipe, images), images, workers=workers, observe=change)


def test_a_full_disk_leaves_the_old_file_and_names_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_atomically(path, "old")

    class Full:
        """A file on a full disk."""

        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.pt'"), atomic_writer(path):
        torch.save({"a": torch.zeros(9)}, Full())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_what_cannot_be_written_is_one_line_and_exit_code_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").write_text("a file")
    settings = [*SMALL, "iterations=1", "--workers", 0, "--data", "data@train"]
    assert ohem("train", "lite0", *settings, "--run", "taken/run") == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "taken: found File exists; allowed after mending it" in complaint


def test_a_run_appears_whole_or_not_at_all(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = AnnotatedImages(*open_shapes(data, "train"))
    with monkeypatch.context() as patch:
        patch.setattr("ohem.training.run.machine", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Run.create(tmp_path / "runs/a", small_recipe(), Sources(("d",)), images.dataset, "")
    assert not (tmp_path / "runs/a").exists()
    Run.create(tmp_path / "runs/a", small_recipe(), Sources(("d",)), images.dataset, "")
    (tmp_path / "disk").mkdir()  # as a disk of its own is, and empty
    Run.create(tmp_path / "disk", small_recipe(), Sources(("d",)), images.dataset, "")
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"a"}
    assert Run.open(tmp_path / "disk").recipe() == Run.open(tmp_path / "runs/a").recipe()


def test_what_a_kill_left_half_written_is_swept_away(data: Path) -> None:
    settings = [*SMALL, "iterations=1", "--workers", 0, "--data", "data@train"]
    assert ohem("train", "lite0", *settings, "--run", "run") == 0
    Path("run/weights.safetensors").unlink()
    for name in (".run.json.ab12.tmp", "checkpoints/.last.pt.cd34.tmp"):
        Path("run", name).write_bytes(b"half")
    assert ohem("train", "--resume", "run", "--workers", 0) == 0
    assert not list(Path("run").rglob("*.tmp"))
