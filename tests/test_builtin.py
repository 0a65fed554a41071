"""The built-in data set: an ordinary VOC folder, made the same way every time, honest about train and test."""

import json
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

from ohem.data import builtin
from ohem.data.builtin import CLASSES, make_builtin
from ohem.errors import DataError, OhemError

TRAIN, TEST = 60, 24
Box = tuple[int, int, int, int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_builtin(tmp_path_factory.mktemp("data") / "builtin", train_images=TRAIN, test_images=TEST)


def stems(folder: Path, split: str) -> list[str]:
    return (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split()


def objects(folder: Path, stem: str) -> list[tuple[str, Box, int]]:
    """Each object's name, its box as it stands in the file, and its truncated flag."""
    return [
        (
            element.findtext("name", ""),
            tuple(int(element.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")),
            int(element.findtext("truncated", "")),
        )
        for element in ElementTree.parse(folder / "Annotations" / f"{stem}.xml").iter("object")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestVocFolder:
    def test_splits_name_every_image_once(self, made: Path) -> None:
        train, test = stems(made, "train"), stems(made, "test")
        assert (len(train), len(test)) == (TRAIN, TEST)
        assert stems(made, "trainval") == train
        every = sorted(train + test)
        assert len(set(every)) == TRAIN + TEST
        assert sorted(path.stem for path in (made / "Annotations").iterdir()) == every
        assert sorted(path.name for path in (made / "JPEGImages").iterdir()) == [f"{stem}.jpg" for stem in every]

    def test_classes_are_the_ten_digits_in_order(self, made: Path) -> None:
        assert (made / "classes.txt").read_text().split() == list(CLASSES)
        assert (CLASSES[0], CLASSES[9], len(CLASSES)) == ("zero", "nine", 10)

    def test_annotation_names_its_image_and_its_size(self, made: Path) -> None:
        for stem in stems(made, "trainval") + stems(made, "test"):
            root = ElementTree.parse(made / "Annotations" / f"{stem}.xml").getroot()
            assert (root.tag, root.findtext("filename")) == ("annotation", f"{stem}.jpg")
            assert [root.findtext(f"size/{side}") for side in ("width", "height", "depth")] == ["192", "144", "3"]
            with Image.open(made / "JPEGImages" / f"{stem}.jpg") as image:
                assert (image.size, image.mode, image.format) == ((192, 144), "RGB", "JPEG")

    def test_boxes_are_inside_the_image_and_not_difficult(self, made: Path) -> None:
        for stem in stems(made, "trainval") + stems(made, "test"):
            for name, (xmin, ymin, xmax, ymax), _ in objects(made, stem):
                assert name in CLASSES
                assert 1 <= xmin < xmax <= 192
                assert 1 <= ymin < ymax <= 144
            assert "<difficult>1" not in (made / "Annotations" / f"{stem}.xml").read_text()

    def test_boxes_are_one_based_inclusive_and_tight_around_the_visible_ink(self, made: Path) -> None:
        painter = builtin._Painter(builtin._load_sources()[0], np.random.default_rng([0, 0]), (192, 144))
        covered = 0
        for stem in stems(made, "train"):
            _, drawn = painter.paint()
            annotated = objects(made, stem)
            assert len(drawn) == len(annotated)
            for digit, (name, box, truncated) in zip(drawn, annotated, strict=True):
                rows, columns = np.nonzero(digit.visible)
                assert name == CLASSES[digit.digit]
                assert box == (columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1)
                whole_rows, whole_columns = np.nonzero(digit.whole)
                same_extent = (np.ptp(rows), np.ptp(columns)) == (np.ptp(whole_rows), np.ptp(whole_columns))
                assert truncated == (not same_extent)
                assert digit.visible.sum() >= 0.75 * digit.whole.sum()
                assert not (digit.visible & ~digit.whole).any()
                covered += int(digit.visible.sum() < digit.whole.sum())
        assert covered > 0


class TestDrawing:
    def test_classes_come_up_about_equally_often(self, made: Path) -> None:
        counts = Counter(name for stem in stems(made, "train") for name, _, _ in objects(made, stem))
        mean = counts.total() / 10
        assert 2.5 * TRAIN <= counts.total() <= 6 * TRAIN
        assert set(counts) == set(CLASSES)
        assert 0.75 * mean <= min(counts.values()) <= max(counts.values()) <= 1.25 * mean

    def test_some_images_hold_no_digit_and_none_holds_more_than_six(self, made: Path) -> None:
        counts = [len(objects(made, stem)) for stem in stems(made, "train")]
        assert min(counts) == 0
        assert 0 < counts.count(0) <= 0.2 * TRAIN
        assert max(counts) <= 6

    def test_digits_are_about_16_to_48_pixels_high_and_do_not_overlap(self, made: Path) -> None:
        heights = []
        for stem in stems(made, "train"):
            mask = np.zeros((144, 192), int)
            for _, (xmin, ymin, xmax, ymax), truncated in objects(made, stem):
                mask[ymin - 1 : ymax, xmin - 1 : xmax] += 1
                if not truncated:
                    heights.append(ymax - ymin + 1)
            assert mask.max() <= 1
        # A digit leaning by 15 degrees stands up to 1.23 times as high as its upright square.
        assert 13 <= min(heights) < 22
        assert 40 < max(heights) <= 60

    def test_digits_stand_out_from_what_is_around_them(self) -> None:
        painter = builtin._Painter(builtin._load_sources()[1], np.random.default_rng(3), (192, 144))
        contrasts = []
        for _ in range(40):
            picture, drawn = painter.paint()
            luma = picture @ np.array([0.299, 0.587, 0.114])
            for digit in drawn:
                rows, columns = np.nonzero(digit.whole)
                around = np.zeros_like(digit.whole)
                around[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
                contrasts.append(luma[digit.visible].mean() - luma[around & ~digit.whole].mean())
        sizes = np.abs(contrasts)
        assert np.quantile(sizes, 0.05) > 20
        assert 0.2 < np.mean(np.array(contrasts) > 0) < 0.8  # some darker, some lighter

    def test_look_alikes_are_farther_from_any_digit_than_digits_are(self) -> None:
        known = load_digits().data
        nearest = NearestNeighbors(n_neighbors=2).fit(known)
        own = nearest.kneighbors(known)[0][:, 1]  # column 0 is the digit itself
        painter = builtin._Painter(builtin._load_sources()[0], np.random.default_rng(0), (192, 144))
        figures = np.stack([painter._look_alike() for _ in range(200)])
        distances = nearest.kneighbors(figures.reshape(-1, 64))[0][:, 0]
        assert distances.min() > np.quantile(own, 0.99)

    @pytest.mark.parametrize("size", [(128, 128), (400, 150)])
    def test_other_sizes(self, tmp_path: Path, size: tuple[int, int]) -> None:
        folder = make_builtin(tmp_path / "data", train_images=8, test_images=2, size=size)
        boxes = [box for stem in stems(folder, "train") for _, box, _ in objects(folder, stem)]
        assert len(boxes) > 10
        assert max(box[2] for box in boxes) <= size[0]
        assert max(box[3] for box in boxes) <= size[1]
        with Image.open(folder / "JPEGImages" / "train_00001.jpg") as image:
            assert image.size == size


class TestSplitsShareNothing:
    def test_no_handwritten_digit_is_in_both(self) -> None:
        train, test = (
            {figure.tobytes() for samples in source.digits for figure in samples} for source in builtin._load_sources()
        )
        assert len(train) > 900
        assert len(test) > 600
        assert not train & test

    def test_each_class_holds_its_own_digits(self) -> None:
        data = load_digits()
        labels = {row.astype(np.float32).tobytes(): label for row, label in zip(data.data, data.target, strict=True)}
        for source in builtin._load_sources():
            for digit, samples in enumerate(source.digits):
                assert {labels[figure.tobytes()] for figure in samples} == {digit}

    def test_no_pixel_of_a_photograph_is_in_both(self) -> None:
        import skimage

        train, test = builtin._load_sources()
        for name, left, right in zip(builtin._PHOTOS, train.photos, test.photos, strict=True):
            with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
                whole = np.asarray(photo.convert("RGB"))
            # Side by side the two regions are the photograph: they can have nothing in common.
            np.testing.assert_array_equal(np.concatenate([left, right], axis=1), whole)


class TestSameBytes:
    def test_for_the_same_parameters(self, made: Path, tmp_path: Path) -> None:
        again = make_builtin(tmp_path / "elsewhere", train_images=TRAIN, test_images=TEST)
        assert contents(again) == contents(made)

    def test_not_for_another_seed(self, made: Path, tmp_path: Path) -> None:
        other = make_builtin(tmp_path / "other", train_images=2, test_images=1, seed=1)
        for stem in ("train_00001", "train_00002", "test_00001"):
            picture = Path("JPEGImages") / f"{stem}.jpg"
            assert (other / picture).read_bytes() != (made / picture).read_bytes()

    def test_a_smaller_set_is_the_beginning_of_a_larger_one(self, made: Path, tmp_path: Path) -> None:
        told: list[tuple[int, int]] = []
        small = make_builtin(
            tmp_path / "small", train_images=3, test_images=2, progress=lambda *counts: told.append(counts)
        )
        assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
        large = contents(made)
        for name, data in contents(small).items():
            if name.startswith(("Annotations", "JPEGImages")):
                assert data == large[name]


class TestReuse:
    def test_the_same_one_is_left_as_it_is(self, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # reuse needs no extra either
        times = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
        assert make_builtin(made, train_images=TRAIN, test_images=TEST) == made
        assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == times

    def test_files_beside_it_do_not_matter(self, tmp_path: Path) -> None:
        folder = make_builtin(tmp_path / "data", train_images=1, test_images=1)
        (folder / "proposals.npz").write_bytes(b"mine")
        make_builtin(folder, train_images=1, test_images=1)
        assert (folder / "proposals.npz").read_bytes() == b"mine"

    def test_an_empty_folder_is_filled_and_parents_are_made(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "new"):
            make_builtin(folder, train_images=1, test_images=1)
            assert sorted(path.name for path in folder.iterdir()) == [
                "Annotations",
                "ImageSets",
                "JPEGImages",
                "builtin.json",
                "classes.txt",
            ]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]  # no draft stays behind

    def test_the_meta_file_says_what_it_was_made_with(self, made: Path) -> None:
        meta = json.loads((made / "builtin.json").read_text())
        assert (meta["seed"], meta["train_images"], meta["test_images"], meta["size"]) == (0, TRAIN, TEST, [192, 144])
        assert set(meta["made_with"]) == {"numpy", "pillow", "opencv", "scikit-learn", "scikit-image"}


class TestRefusal:
    def refused(self, folder: Path, **parameters: int) -> str:
        """The message of the refusal, after making sure that it is one line and changed nothing."""
        before = contents(folder)
        with pytest.raises(DataError) as caught:
            make_builtin(folder, **{"train_images": 1, "test_images": 1, **parameters})
        assert contents(folder) == before
        message = str(caught.value)
        assert "\n" not in message
        assert message.startswith(f"{folder}: ")
        return message

    def test_a_folder_with_other_things(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("all I have")
        assert "'thesis.tex'" in self.refused(tmp_path)

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("not a folder")
        assert "found a file" in self.refused(tmp_path / "data")
        assert (tmp_path / "data").read_text() == "not a folder"

    def test_other_parameters(self, tmp_path: Path) -> None:
        make_builtin(tmp_path / "data", train_images=1, test_images=1)
        message = self.refused(tmp_path / "data", seed=5)
        assert "seed 0" in message.split("allowed:")[0]
        assert "seed 5" in message.split("allowed:")[1]

    @pytest.mark.parametrize("damage", ["changed", "lost", "added"])
    def test_files_changed_since(self, tmp_path: Path, damage: str) -> None:
        folder = make_builtin(tmp_path / "data", train_images=1, test_images=1)
        annotation = folder / "Annotations" / "train_00001.xml"
        if damage == "changed":
            annotation.write_text(annotation.read_text().replace("<truncated>0", "<truncated>1", 1) + " ")
        elif damage == "lost":
            annotation.unlink()
        else:
            (folder / "JPEGImages" / "mine.jpg").write_bytes(b"")
        assert "changed since it was made" in self.refused(folder)

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"seed": "two\\nlines"}', "\xff"])
    def test_a_meta_file_of_something_else(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "builtin.json").write_bytes(text.encode("latin-1"))
        assert "a built-in data set of" in self.refused(tmp_path)

    def test_every_parameter_out_of_range_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            make_builtin(tmp_path / "data", train_images=0, test_images=-1, seed=-2, size=(64, 5000))
        fields = [fault.field for fault in caught.value.faults]
        assert fields == ["train_images", "test_images", "seed", "size[0]", "size[1]"]
        assert not (tmp_path / "data").exists()

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OhemError, match="cannot be written there"):
            make_builtin(tmp_path / "file" / "data", train_images=1, test_images=1)
        assert (tmp_path / "file").read_text() == "mine"

    @pytest.mark.parametrize("package", ["sklearn.datasets", "skimage"])
    def test_without_the_extra(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(OhemError, match=r"^[^\n]*pip install 'ohem\[demo\]'$"):
            make_builtin(tmp_path / "data")
        assert not any(tmp_path.iterdir())

    def test_photographs_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"astronaut\.png: found no such file; allowed: .*scikit-image") as caught:
            builtin._load_photos(tmp_path)
        assert len(caught.value.faults) == len(builtin._PHOTOS)

    def test_an_interruption_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr(builtin, "_annotation", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_builtin(tmp_path / "data", train_images=1, test_images=1)
        assert not any(tmp_path.iterdir())
