"""How large `ohem report`'s page is, and how long it takes to make and to open, for 50 classes and 5,000 test images.

    python benchmarks/report_size.py

Images, annotations and detections are made up (in a temporary folder), the network is not trained, and the log has 2,000
records: only sizes and times mean anything. Opening is timed from the start of a headless Chromium to its end, where
there is one.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ohem.console import Console
from ohem.data.dataset import Detections
from ohem.data.sources import load_dataset
from ohem.evaluation.results import save_coco_results
from ohem.models.weights import build_detector, save_detector
from ohem.recipes.recipe import load_recipe
from ohem.report.report import make_report
from ohem.training.run import Run, Sources

SIZE = (500, 375)


def make_data(folder: Path, images: int, classes: int, rng: np.random.Generator) -> str:
    """A COCO file; pictures of smooth noise, which compress about as well as photographs."""
    (folder / "images").mkdir(parents=True)
    annotations = []
    for i in range(images):
        small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
        picture += rng.integers(-12, 13, picture.shape, dtype=np.int16)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{i}.jpg", quality=85)
        for x, y, w, h in boxes(4, rng):
            category = int(rng.integers(classes)) + 1
            annotations.append({"id": len(annotations) + 1, "image_id": i, "category_id": category})
            annotations[-1] |= {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
    names = [{"id": c + 1, "name": f"class number {c + 1}"} for c in range(classes)]
    listed = [{"id": i, "file_name": f"{i}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(images)]
    content = {"images": listed, "categories": names, "annotations": annotations}
    (folder / "instances.json").write_text(json.dumps(content))
    return str(folder / "instances.json")


def boxes(count: int, rng: np.random.Generator) -> list[list[float]]:
    """x, y, w, h."""
    sides = rng.integers(30, 250, (count, 2))
    corners = rng.integers(0, np.array(SIZE) - sides + 1)
    return [[float(value) for value in row] for row in np.hstack([corners, sides])]


def make_run(folder: Path, test: str, train: str, rng: np.random.Generator) -> None:
    """A run as it would be after training and evaluation, with 20 detections an image."""
    dataset, train_set = load_dataset([test]), load_dataset([train])
    proposals = {record.id: np.array(boxes(50, rng), np.float32) for record in train_set.records}
    listing = [{"image_id": i, "bbox": box, "score": 1.0} for i, of in proposals.items() for box in of.tolist()]
    file = folder.parent / "proposals.json"
    file.write_text(json.dumps(listing))
    recipe = load_recipe("lite0", ["iterations=40000"])
    run = Run.create(folder, recipe, Sources((train,), proposals=(str(file),)), train_set, "")
    save_detector(
        run.weights_file, build_detector(recipe.detector, len(dataset.classes)), recipe.detector, dataset.classes
    )
    for i in range(2000):
        mined = {"labels": rng.integers(0, 9, 51).tolist(), "iou": [4] * 10, "sizes": [3, 4, 5], "followed": []}
        values = {"loss_all_rois": 1.0, "loss_selected_rois": 1.0, "foreground_share": 0.2, "peak_memory_mb": 1.0}
        seconds = {"data": 0.1, "ranking": 0.2, "training": 0.3, "measuring": 0.0}
        run.append(
            {"kind": "train", "iteration": 20 * (i + 1), "lr": 1.0, **values, "seconds": seconds, "mined": mined}
        )
    found = {}
    for record in dataset.records:
        rows = np.array(boxes(20, rng))
        rows[:4] = np.hstack([record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]]) + rng.normal(
            0, 9, (4, 4)
        )
        corners = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:].clip(1)]).astype(np.float32)
        labels = np.concatenate([record.labels, rng.integers(1, len(dataset.classes) + 1, 16)])
        found[record.id] = Detections(corners, rng.random(20).astype(np.float32), labels)
    save_coco_results(folder / "evaluation" / "detections.json", dataset, found)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps({"sources": [test]}))


def open_seconds(page: Path, user: Path) -> float | None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        return None
    start = time.perf_counter()
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={user}", "--window-size=1200,900"]
    shot = f"--screenshot={user.parent / 'shot.png'}"
    subprocess.run([chromium, *options, shot, page.as_uri()], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, Console() as console:
        folder = Path(name)
        test = make_data(folder / "test", arguments.images, arguments.classes, rng)
        train = make_data(folder / "train", 100, arguments.classes, rng)
        runs = [folder / f"run-{i}" for i in range(arguments.runs)]
        for run in runs:
            (folder / "proposals.json").unlink(missing_ok=True)
            make_run(run, test, train, rng)
        start = time.perf_counter()
        page = make_report(runs, out=folder / "report.html", workers=0, reporter=console)
        seconds = time.perf_counter() - start
        open_seconds(page, folder / "user")  # a browser's first start makes its user's folder
        opened = open_seconds(page, folder / "user")
        size = page.stat().st_size / 1e6
    shown = "no Chromium here" if opened is None else f"opened and drawn in {opened:.1f} s"
    print(f"{arguments.runs} runs, {arguments.classes} classes, {arguments.images} images: {size:.1f} MB")
    print(f"made in {seconds:.0f} s; {shown}")


if __name__ == "__main__":
    main()
