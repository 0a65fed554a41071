"""The commands as functions: what they refuse, what they say, and where they put things."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ohem
from ohem.bootstrapping import harvest
from ohem.data.split import hold_out
from ohem.errors import OhemError
from ohem.files import new_folder
from ohem.models.backbones import CAFFE
from ohem.models.weights import load_detector, save_detector
from ohem.pictures import JPEG_MAX_SIDE, draw_boxes, drawn_names, find_pictures
from ohem.recipes.recipe import DataSpec
from ohem.training.beginning import AnnotatedImages
from ohem.training.run import Run, Sources
from ohem.workflow import _began_so, _create_run, trained_on
from shapes import make_shapes, open_shapes, small_recipe


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def progress(self, task: str, done: int, total: int) -> None: ...

    def record(self, record: Mapping[str, Any]) -> None: ...


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OHEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for a step on shapes, which are beside it."""
    folder = tmp_path_factory.mktemp("run")
    data = make_shapes(folder / "data", train=4, test=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OHEM_CACHE", str(folder / "cache"))
        made, finished = ohem.train(
            small_recipe("iterations=1"), Sources((f"{data}@train",)), folder=str(folder / "run"), workers=0
        )
    assert finished
    return made


def data_of(run: Path, split: str = "test") -> str:
    return f"{run.parent / 'data'}@{split}"


def without_objects(folder: Path) -> Path:
    make_shapes(folder, train=4, test=2)
    for annotation in (folder / "Annotations").glob("test_*.xml"):
        annotation.write_text(re.sub(r"<object>.*</object>", "", annotation.read_text(), flags=re.DOTALL))
    return folder


# ---------------------------------------------------------------------------------------------------------- validation


def test_training_without_an_object_is_refused() -> None:
    data = without_objects(Path("data"))
    with pytest.raises(OhemError, match="data@test: found no object to learn from in 2 images; allowed: at least one"):
        ohem.train(small_recipe("iterations=4"), Sources((f"{data}@test",)), name="run", workers=0)
    assert not Path("runs/run").exists()


def test_a_run_is_trained_by_one_process_at_a_time(run: Path) -> None:
    copy = Path("copy")
    shutil.copytree(run, copy)
    (copy / "weights.safetensors").unlink()
    code = (
        "import sys, time, pathlib; from ohem.training.run import Run\n"
        "with Run(pathlib.Path(sys.argv[1])).alone():\n    print(1, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(copy)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(OhemError, match="copy: found a training of it that is running; allowed: ohem watch"):
            ohem.resume(copy, workers=0)
        other.kill()
    with Run(copy).alone():
        assert (copy / ".lock").exists()
    assert not (copy / ".lock").exists()


def test_a_restart_goes_on_with_what_its_command_began_and_with_no_other_run(run: Path) -> None:
    recipe, sources = small_recipe("iterations=1"), Sources((data_of(run, "train"),))
    assert _began_so(Run(run), recipe, sources)
    assert not _began_so(Run(run), small_recipe("iterations=2"), sources)
    assert not _began_so(Run(run), recipe, Sources((data_of(run),)))
    assert not _began_so(Run(Path("nowhere")), recipe, sources)


def test_what_is_held_out_is_no_training_image() -> None:
    whole, _ = open_shapes(make_shapes(Path("data"), train=20, test=1), "train")
    recipe = small_recipe("data.holdout=0.25", "data.fraction=0.6")
    held = {record.id for record in hold_out(whole, 0.25)[1].records}
    part = trained_on(whole, recipe, Sources(("a",)))
    assert len(part) == 9
    assert not held & {record.id for record in part.records}
    assert len(trained_on(whole, recipe, Sources(("a",), ("b",)))) == 12  # there are other images to validate on


def test_a_resumed_run_is_validated_on_what_it_was() -> None:
    data, half = make_shapes(Path("data"), train=4, test=2), small_recipe("iterations=2", "evaluation.every=2")
    plain, _ = ohem.train(half, Sources((f"{data}@train",)), name="plain", workers=0)
    with_val, _ = ohem.train(half, Sources((f"{data}@train",), (f"{data}@test",)), name="val", workers=0)
    for folder in (plain, with_val):
        (folder / "weights.safetensors").unlink()
    with pytest.raises(OhemError, match="found --val for a run that began without"):
        ohem.resume(plain, moved=Sources((), (f"{data}@test",)), workers=0)
    with pytest.raises(OhemError, match="found other validation images, annotations or proposals"):
        ohem.resume(with_val, moved=Sources((), (f"{data}@train",)), workers=0)
    assert ohem.resume(with_val, workers=0)


class Killer(Listener):
    """Ends the training in its second step."""

    def record(self, record: Mapping[str, Any]) -> None:
        if record.get("done") == 2:
            raise RuntimeError("killed")


def test_a_run_goes_on_without_the_weights_that_it_began_with(run: Path) -> None:
    detector, spec, classes = load_detector(run / "weights.safetensors")
    detector.backbone.preprocessing = CAFFE  # as only the file tells
    save_detector(Path("start.safetensors"), detector, spec, classes)
    recipe = small_recipe("iterations=3", "checkpoint_every=1", "init_from=start.safetensors")
    sources = Sources((data_of(run, "train"),))
    whole, _ = ohem.train(recipe, sources, name="whole", workers=0)
    with pytest.raises(RuntimeError, match="killed"):
        ohem.train(recipe, sources, name="killed", workers=0, reporter=Killer())
    Path("start.safetensors").unlink()
    killed = Path("runs/killed")
    assert ohem.resume(killed, workers=0)
    assert (killed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()

    (killed / "weights.safetensors").unlink()
    (killed / "checkpoints/last.pt").unlink()
    with pytest.raises(OhemError, match=r"start\.safetensors"):  # there is nothing else to begin with
        ohem.resume(killed, workers=0)


def test_validation_without_an_object_is_told_and_chooses_no_weights() -> None:
    data, listener = without_objects(Path("data")), Listener()
    recipe = small_recipe("iterations=4", "evaluation.every=2", "log_every=2")
    sources = Sources((f"{data}@train",), (f"{data}@test",))
    folder, _ = ohem.train(recipe, sources, name="run", workers=0, reporter=listener)
    assert listener.warned == ["data@test: found no object to find, so validation cannot tell which weights are best"]
    lines = Run(folder).log_file.read_text().splitlines()
    validations = [json.loads(line) for line in lines if '"validation"' in line]
    assert [record["voc07"] for record in validations] == [None, None]
    assert not any("NaN" in line for line in lines)
    assert not Run(folder).best_file.exists()
    assert ohem.evaluate(folder, [f"{data}@train"], workers=0).metrics["weights"] == "weights.safetensors"
    assert ohem.make_report(folder, most_images=1, workers=0).is_file()


def test_a_share_that_holds_no_image_out_is_refused() -> None:
    data = make_shapes(Path("data"), train=4, test=2)
    with pytest.raises(
        OhemError, match=r"data\.holdout: found 0\.1, which is none of 4 images; allowed: a larger share"
    ):
        ohem.train(small_recipe("data.holdout=0.1"), Sources(f"{data}@train"), workers=0)  # type: ignore[arg-type]
    assert not Path("runs").exists()


def test_settings_that_have_no_effect_are_told_or_refused(run: Path) -> None:
    recipe, listener = small_recipe("iterations=1", "data.holdout=0.5"), Listener()
    ohem.train(recipe, Sources((data_of(run, "train"),), (data_of(run),)), workers=0, reporter=listener)
    assert listener.warned == ["data@train: no image is held out (data.holdout), since there are validation data"]
    with pytest.raises(OhemError, match=r"val_proposals: found boxes\.json; allowed beside validation data"):
        ohem.train(recipe, Sources((data_of(run, "train"),), val_proposals=("boxes.json",)), workers=0)


# ------------------------------------------------------------------------------------------------------------- folders


def test_two_at_once_take_two_folders_and_an_empty_one_is_not_left() -> None:
    with new_folder(None, Path("made/found")) as one, new_folder(None, Path("made/found")) as other:
        (one / "file").touch()
    assert (one, other) == (Path("made/found"), Path("made/found-2"))
    assert [path.name for path in Path("made").iterdir()] == ["found"]
    with pytest.raises(OhemError, match="no data"), new_folder("wanted", Path("made/found")):
        raise OhemError("no data")
    assert not Path("wanted").exists()
    Path("wanted").mkdir()
    with new_folder(Path("wanted"), Path("made/found")) as wanted:
        assert wanted == Path("wanted")
    assert wanted.exists()  # it is the user's
    with pytest.raises(OhemError, match=r"found: found something there already"), new_folder(one, Path("x")):
        pass


def test_a_link_that_leads_nowhere_is_something_that_is_there() -> None:
    Path("found").symlink_to("gone")
    with new_folder(None, Path("found")) as folder:
        assert folder == Path("found-2")
    with pytest.raises(OhemError, match="found: found something there already"), new_folder("found", Path("x")):
        pass


def test_trainings_that_begin_at_once_have_a_run_each(run: Path) -> None:
    images = AnnotatedImages(*open_shapes(run.parent / "data", "train"))
    recipe = small_recipe()
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: _create_run(None, Path("runs/a"), recipe, Sources(("d",)), images), range(8)))
    assert sorted(run.folder.name for run in made) == ["a", *(f"a-{i}" for i in range(2, 9))]
    assert all(run.recipe() == recipe for run in made)


def test_a_place_that_cannot_be_written_to_is_found_before_anything_long(run: Path) -> None:
    Path("file").touch()
    listener = Listener()
    with pytest.raises(OSError, match="file"):
        ohem.evaluate(run, [data_of(run)], out=Path("file/evaluation"), workers=0, reporter=listener)
    assert not any("proposals" in text for text in listener.said)


# --------------------------------------------------------------------------------------------- names, boxes and pictures


def test_names_that_vocs_files_cannot_hold_cost_those_files_alone(run: Path) -> None:
    data, listener = make_shapes(Path("data"), train=4, test=2), Listener()
    (data / "JPEGImages/test_000.png").rename(data / "JPEGImages/test 000.png")
    annotation = (data / "Annotations/test_000.xml").read_text().replace("test_000", "test 000")
    (data / "Annotations/test 000.xml").write_text(annotation)
    (data / "ImageSets/Main/test.txt").write_text("test 000\ntest_001\n")
    found = ohem.evaluate(run, [f"{data}@test"], out=Path("found"), workers=0, reporter=listener)
    assert listener.warned == [
        "VOC results hold no image ids with white space; found 1 (first 'test 000'); none are written"
    ]
    assert {path.name for path in found.folder.iterdir()} == {"detections.json", "metrics.json"}
    assert not math.isnan(found.voc07.mean_ap)


def test_vocs_files_of_joined_splits_bear_neither_name(run: Path) -> None:
    data = make_shapes(Path("data"), train=4, test=2)
    found = ohem.evaluate(run, [f"{data}@train", f"{data}@test"], out=Path("found"), workers=0)
    assert {path.name.split("_")[2] for path in (found.folder / "voc").iterdir()} == {"all"}


def test_a_class_that_is_a_path_is_measured_and_nothing_is_written_there(run: Path) -> None:
    detector, spec, classes = load_detector(run / "weights.safetensors")
    save_detector(Path("in/w.safetensors").resolve(), detector, spec, ("../../x", *classes[1:]))
    listener = Listener()
    ohem.evaluate("in/w.safetensors", data_of(run), workers=0, reporter=listener)
    assert "not to be used as file names: ['comp4_det_test_../../x.txt']; none are written" in listener.warned[-1]
    written = {path.name for path in Path().rglob("*") if path.is_file() and "cache" not in path.parts}
    assert written == {"w.safetensors", "detections.json", "metrics.json"}


def test_pictures_of_one_stem_have_a_drawing_each_and_the_longest_is_a_png(run: Path) -> None:
    Path("photos").mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8))
    for name in ("a.png", "a.jpg", "A.bmp", "b.png"):
        picture.save(Path("photos", name))
    Image.new("RGB", (JPEG_MAX_SIDE + 1, 2)).save("photos/wide.png")
    found = ohem.detect_pictures(str(run), "photos", workers=0)
    drawn = [one["picture"] for one in found.listing["images"]]
    assert len(set(map(str.lower, drawn))) == 5
    assert [name for name in drawn if "-" not in name] == ["b.jpg", "wide.png"]
    assert {path.name for path in found.folder.iterdir()} == {*drawn, "detections.json"}


def test_hidden_files_in_a_folder_of_pictures_are_none() -> None:
    Path("photos").mkdir()
    for name in ("a.JPG", "b.mpo", "._a.jpg", "notes.txt"):
        (Path("photos") / name).touch()
    with pytest.raises(OhemError, match="an empty name: found no pictures"):
        find_pictures([""])
    assert find_pictures(["photos"]) == [Path("photos/a.JPG"), Path("photos/b.mpo")]


def test_a_caption_is_whole_at_the_right_edge() -> None:
    def coloured(x: float) -> int:
        boxes = np.array([[x, 40, x + 10, 60]], dtype=np.float64)
        drawn = draw_boxes(np.zeros((100, 200, 3), dtype=np.uint8), boxes, ["square 0.87"], [(255, 0, 0)])
        return int((np.asarray(drawn)[:40, :, 0] > 0).sum())

    assert coloured(190) == coloured(20) > 0


def test_a_class_whose_letters_the_font_lacks_is_drawn_by_its_number_and_told(run: Path) -> None:
    assert drawn_names(("cat", "\u732b", "a b")) == ["cat", "class 2", "a b"]
    detector, spec, classes = load_detector(Run(run).weights_file)
    save_detector(Path("named.safetensors"), detector, spec, ("\u732b", *classes[1:]))
    listener = Listener()
    pictures = str(run.parent / "data/JPEGImages")
    found = ohem.detect_pictures("named.safetensors", pictures, threshold=0.0, workers=0, reporter=listener)
    assert any(1 in one.labels for one in found.detections.values())
    assert listener.warned == ["the font of drawn pictures lacks letters of some classes: in them, \u732b is class 1"]
    assert "\u732b" in {one["class"] for picture in found.listing["images"] for one in picture["objects"]}


def test_suspects_of_data_by_relative_and_absolute_names(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    found = ohem.inspect_annotations("run", ["data@train", f"{Path('data').resolve()}@test"], workers=0)
    images = json.loads((found.folder / "suspects.json").read_text())["images"]
    assert {os.path.dirname(image["file_name"]) for image in images} == {""}  # noqa: PTH120


def test_a_harvest_may_leave_bad_boxes_out(run: Path) -> None:
    data = make_shapes(Path("data"), train=2, test=1)
    annotation = data / "Annotations/train_000.xml"
    annotation.write_text(re.sub(r"<xmax>\d+<", "<xmax>1<", annotation.read_text(), count=1))
    with pytest.raises(OhemError, match="train_000"):
        harvest(run, f"{data}@train", Path("hard.json"), workers=0)
    spec = DataSpec(other_classes="drop", bad_boxes="drop")
    assert len(harvest(run, f"{data}@train", Path("hard.json"), data_spec=spec, workers=0)) == 2


def test_one_string_is_one_source_and_names_may_be_strings(run: Path) -> None:
    assert Sources("a@b", val=["c"]) == Sources(("a@b",), ("c",))  # type: ignore[arg-type]
    assert len(ohem.load_dataset(data_of(run))) == 2
    found = ohem.evaluate(str(run), data_of(run), out=Path("found"), workers=0)
    assert found.metrics["sources"] == [data_of(run)]
