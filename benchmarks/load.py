"""Time and memory where there is much: data of COCO's size, 10,000 RoIs and 1,000 objects in one image, LVIS's classes.

    python benchmarks/load.py FOLDER [--images 120000] [--boxes 860000] [STAGE...]

FOLDER (new, or of an earlier call) is filled with generated data: one tiny picture under 120,000 names, a COCO JSON without
polygons, a cache of 300 proposals for each image. Every stage runs in a process of its own; what is printed is its wall
time and its peak resident memory, that of its largest worker beside it. Exits with 1 where a stage took more than 4 GB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIMIT_GB = 4.0
SIZE = (64, 48)
PROPOSALS, DETECTIONS, CLASSES, LVIS_CLASSES = 300, 20, 80, 1200
LINKS = 30_000
"""Names that one file may have; file systems set a limit somewhere above."""


def random_boxes(rng: Any, count: int, size: tuple[int, int] = SIZE) -> Any:
    import numpy as np

    corner = rng.random((count, 2)) * (np.array(size) - 12)
    side = 4 + rng.random((count, 2)) * np.minimum(np.array(size) - corner - 5, 200)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ generating


def make_data(folder: Path, images: int, boxes: int) -> None:
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    for index in range(images):
        path = folder / "images" / f"{index:012d}.jpg"
        if index % LINKS == 0:
            picture.save(path)
            first = path
        else:
            os.link(first, path)
    xyxy = random_boxes(rng, boxes).astype(float).round(2)
    owner, category = rng.integers(0, images, boxes).tolist(), rng.integers(1, CLASSES + 1, boxes).tolist()
    entries = [
        {"id": i, "image_id": owner[i], "category_id": category[i], "bbox": [x, y, round(a - x, 2), round(b - y, 2)]}
        for i, (x, y, a, b) in enumerate(xyxy.tolist())
    ]
    named = [{"id": i, "file_name": f"{i:012d}.jpg", "width": SIZE[0], "height": SIZE[1]} for i in range(images)]
    categories = [{"id": c, "name": f"class {c}"} for c in range(1, CLASSES + 1)]
    content = {"images": named, "annotations": entries, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))


def make_cache(folder: Path, images: int) -> None:
    import numpy as np

    from ohem.proposals.cache import ProposalSetting, _Image, _open_for_writing, _save, _stamp

    rng = np.random.default_rng(1)
    connection = _open_for_writing(folder / "proposals.sqlite", ProposalSetting())
    stamp = _stamp(folder / "images" / f"{0:012d}.jpg")
    for start in range(0, images, 10_000):
        ids = range(start, min(start + 10_000, images))
        _save(connection, [_Image(i, stamp, random_boxes(rng, PROPOSALS)) for i in ids])
    connection.close()


# ---------------------------------------------------------------------------------------------------------------- stages


def source(folder: Path) -> str:
    return f"{folder / 'instances.json'}@images"


def opened(folder: Path) -> Any:
    from ohem.data.sources import load_dataset

    return load_dataset([source(folder)])


def start_up(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "ohem", "--help"], check=True, stdout=subprocess.DEVNULL)
    return "ohem --help"


def check(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "ohem", "check", source(folder)], check=True, stdout=subprocess.DEVNULL)
    return "ohem check: all annotations read, all pictures decoded"


def cache(folder: Path) -> str:
    from ohem.proposals.imports import load_proposals, validate_proposals
    from ohem.training.run import fingerprint

    dataset = opened(folder)
    proposals, _ = load_proposals([folder / "proposals.sqlite"])
    assert validate_proposals(proposals, dataset.records) == []
    fingerprint(dataset, proposals)
    return f"the proposals of {len(proposals)} images read, checked, and read again for the fingerprint"


def loading(folder: Path) -> str:
    from ohem.data.loading import Samples, load_batches, training_batches
    from ohem.models.spec import ImageSpec
    from ohem.proposals.cache import ProposalCache

    dataset, steps = opened(folder), 1_000
    samples = Samples(dataset.records, ProposalCache(folder / "proposals.sqlite"), ImageSpec(shortest=48, longest=64))
    plan = training_batches(len(samples), 2, range(steps), 0, True)
    seen = sum(len(batch) for batch in load_batches(samples, plan, 2))
    return f"{seen} images of {len(dataset)} loaded by 2 workers"


def evaluation(folder: Path) -> str:
    import numpy as np

    from ohem.data.dataset import Detections
    from ohem.evaluation.coco import evaluate_coco
    from ohem.evaluation.voc import evaluate_voc

    dataset, rng = opened(folder), np.random.default_rng(2)

    def detections() -> Detections:
        scores = rng.random(DETECTIONS).astype(np.float32)
        return Detections(random_boxes(rng, DETECTIONS), scores, rng.integers(1, CLASSES + 1, DETECTIONS))

    found = {record.id: detections() for record in dataset.records}
    evaluate_voc(dataset, found, method="area")
    evaluate_coco(dataset, found)
    return f"VOC's and COCO's numbers of {DETECTIONS * len(found)} detections"


def _step(num_classes: int, proposals: int, objects: int) -> None:
    import numpy as np
    import torch

    from ohem.models.weights import build_detector
    from ohem.recipes.recipe import load_recipe
    from ohem.training.beginning import set_method

    recipe = load_recipe("lite0", ["detector.backbone.weights=none"])
    torch.manual_seed(0)
    detector = build_detector(recipe.detector, num_classes).train()
    set_method(detector, recipe)
    rng, size = np.random.default_rng(3), (640, 480)
    target = {
        "boxes": torch.from_numpy(random_boxes(rng, objects, size)),
        "labels": torch.from_numpy(rng.integers(1, num_classes + 1, objects)),
        "difficult": torch.zeros(objects, dtype=torch.bool),
        "crowd": torch.zeros(objects, dtype=torch.bool),
    }
    image = torch.from_numpy(rng.integers(0, 256, (3, size[1], size[0]), dtype=np.uint8))
    boxes = torch.from_numpy(random_boxes(rng, proposals, size))
    step = detector.training_step([image], [boxes], [target], torch.Generator().manual_seed(0))
    torch.stack(list(step.losses.values())).sum().backward()  # type: ignore[no-untyped-call]


def crowded(folder: Path) -> str:
    _step(CLASSES, 10_000, 1_000)
    return "a training step of lite0 with OHEM on 640 x 480 px: 10,000 proposals, 1,000 objects"


def classes(folder: Path) -> str:
    _step(LVIS_CLASSES, 2_000, 50)
    return f"a training step of lite0 with OHEM on 640 x 480 px: {LVIS_CLASSES} classes, 2,000 proposals"


STAGES: dict[str, Callable[[Path], str]] = {
    stage.__name__: stage for stage in (start_up, check, cache, loading, evaluation, crowded, classes)
}


def measure(stage: str, folder: Path) -> bool:
    """Run a stage and print what it took; whether that was within the limit."""
    start = time.monotonic()
    command = [sys.executable, __file__, str(folder), "--only", stage]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    what, own, child = done.stdout.splitlines()[-1].split("\t")
    peaks = [float(kilobytes) / 2**20 for kilobytes in (own, child)]
    print(f"{stage}: {what}: {time.monotonic() - start:.1f} s, {peaks[0]:.2f} GB, child {peaks[1]:.2f} GB", flush=True)
    return max(peaks) <= LIMIT_GB


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--only", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        what = STAGES[options.only](options.folder)
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(what, *peaks, sep="\t")
        return 0
    if not options.folder.exists():
        make_data(options.folder, options.images, options.boxes)
        make_cache(options.folder, options.images)
    within = [measure(stage, options.folder) for stage in options.stages or STAGES]
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main())
