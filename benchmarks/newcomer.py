"""A newcomer's path, timed: three commands from nothing to a detector of 200 pictures and a report that opens.

    python benchmarks/newcomer.py --form voc coco yolo

The pictures are ohem's built-in ones, 200 to train on and 50 to test, or with ``--data DATA`` the first of a VOC folder's
splits trainval and test. They are written anew in each form, as a person has them. For each form an empty virtual environment is made, and
then, each as its own process: ``pip install '.[fast]'``, ``ohem train lite0 --data MINE@train --val MINE@test``, ``ohem report RUN``.
``--fields iterations=50`` tries the path. How long pip takes is mostly how far away its packages are.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from ohem.data.builtin import make_builtin
from ohem.data.dataset import DetectionDataset, ImageRecord
from ohem.data.sources import load_dataset

REPOSITORY = Path(__file__).parents[1]
IMAGES = {"train": 200, "test": 50}


def write_voc(folder: Path, splits: dict[str, DetectionDataset]) -> str:
    """Pictures, one XML each, and lists of the splits."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, dataset in splits.items():
        for stem, record in stems(dataset):
            shutil.copy(record.path, folder / "JPEGImages" / f"{stem}{record.path.suffix}")
            objects = "".join(
                f"<object><name>{dataset.classes[label - 1]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
                f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
                for (x1, y1, x2, y2), label in zip(record.boxes, record.labels, strict=True)
            )
            size = f"<size><width>{record.width}</width><height>{record.height}</height><depth>3</depth></size>"
            file = f"<filename>{stem}{record.path.suffix}</filename>"
            (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{file}{size}{objects}</annotation>")
        names = "\n".join(stem for stem, _ in stems(dataset))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(names + "\n")
    return str(folder)


def write_coco(folder: Path, splits: dict[str, DetectionDataset]) -> str:
    """Folders of pictures, and one JSON a split."""
    for split, dataset in splits.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number, (stem, record) in enumerate(stems(dataset), start=1):
            name = f"{stem}{record.path.suffix}"
            shutil.copy(record.path, folder / split / name)
            images.append({"id": number, "file_name": name, "width": record.width, "height": record.height})
            for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
                box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
                one = {"id": len(annotations) + 1, "image_id": number, "category_id": label, "bbox": box}
                annotations.append({**one, "area": area, "iscrowd": 0})
        categories = [{"id": label, "name": name} for label, name in enumerate(dataset.classes, start=1)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return str(folder)


def write_yolo(folder: Path, splits: dict[str, DetectionDataset]) -> str:
    """``images/SPLIT``, ``labels/SPLIT`` and ``data.yaml``."""
    for split, dataset in splits.items():
        for name in ("images", "labels"):
            (folder / name / split).mkdir(parents=True)
        for stem, record in stems(dataset):
            shutil.copy(record.path, folder / "images" / split / f"{stem}{record.path.suffix}")
            lines = [
                f"{label - 1} {(x1 + x2) / 2 / record.width:.6f} {(y1 + y2) / 2 / record.height:.6f}"
                f" {(x2 - x1) / record.width:.6f} {(y2 - y1) / record.height:.6f}\n"
                for (x1, y1, x2, y2), label in zip(record.boxes, record.labels, strict=True)
            ]
            (folder / "labels" / split / f"{stem}.txt").write_text("".join(lines))
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(splits["train"].classes))
    (folder / "data.yaml").write_text(f"train: images/train\ntest: images/test\nnames:\n{names}")
    return str(folder)


FORMS: dict[str, tuple[Callable[[Path, dict[str, DetectionDataset]], str], str, str]] = {
    "voc": (write_voc, "{}@train", "{}@test"),
    "coco": (write_coco, "{}/train.json@train", "{}/test.json@test"),
    "yolo": (write_yolo, "{}@train", "{}@test"),
}
"""How each form is written, and how ``ohem`` is told of its two splits."""


def stems(dataset: DetectionDataset) -> Iterable[tuple[str, ImageRecord]]:
    """A name for each picture."""
    return ((record.path.stem, record) for record in dataset.records)


def first(source: str, count: int) -> DetectionDataset:
    """The first pictures of a data set."""
    whole = load_dataset([source])
    return replace(whole, records=whole.records[:count])


def timed(command: list[str], folder: Path) -> float:
    """Seconds that a command took; what it said is shown if it failed."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def walk(form: str, data: str, folder: Path, fields: list[str]) -> None:
    """The three commands of one form."""
    write, *sources = FORMS[form]
    splits = {
        split: first(f"{data}@{name}", IMAGES[split]) for split, name in (("train", "trainval"), ("test", "test"))
    }
    mine = write(folder / f"my_{form}", splits)
    train, test = (source.replace("{}", mine) for source in sources)
    subprocess.run([sys.executable, "-m", "venv", str(folder / form)], check=True)
    pip, ohem = (str(folder / form / "bin" / name) for name in ("pip", "ohem"))
    commands = {
        "pip install": [pip, "install", "--quiet", f"{REPOSITORY}[fast]"],
        "ohem train": [ohem, "train", "lite0", "--data", train, "--val", test, "--run", f"run_{form}", *fields],
        "ohem report": [ohem, "report", f"run_{form}"],
    }
    seconds = {name: timed(command, folder) for name, command in commands.items()}
    page = folder / f"run_{form}" / "report.html"
    log = [json.loads(line) for line in (folder / f"run_{form}" / "log.jsonl").read_text().splitlines()]
    accuracy = next(record for record in reversed(log) if record["kind"] == "validation")
    print(
        f"{form}: " + ", ".join(f"{name} {value / 60:.1f} min" for name, value in seconds.items()) + ",",
        f"in all {sum(seconds.values()) / 60:.1f} min; page {page.stat().st_size / 1e6:.1f} MB;",
        f"{accuracy['voc07'] * 100:.1f} % mAP (voc07) on {IMAGES['test']} pictures",
        flush=True,
    )


def main() -> None:
    """Walk the path of each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--data", help="a VOC folder; default: the built-in pictures")
    parser.add_argument("--fields", nargs="+", default=[], help="fields of the recipe, for ohem train")
    arguments = parser.parse_args()
    for form in arguments.form:
        with tempfile.TemporaryDirectory() as name:  # an environment is several gigabytes
            folder = Path(name)
            data = arguments.data or str(make_builtin(folder / "builtin", train_images=200, test_images=50))
            walk(form, str(Path(data).resolve()), folder, arguments.fields)


if __name__ == "__main__":
    main()
