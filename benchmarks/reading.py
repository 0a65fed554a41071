"""Whether images come as fast as a step takes them: selective search, the cache, decoding; and the wait in a training."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import ohem
from ohem.console import Console
from ohem.data.loading import make_sample
from ohem.opening import open_dataset, open_proposals
from ohem.proposals.cache import ProposalCache, ProposalSetting, make_proposals
from ohem.recipes.recipe import load_recipe
from ohem.training.run import Run
from timing import line

SEARCHED, DECODED, STEPS = 10, 200, 60


def measure_reading(data: Sequence[str], proposals: Sequence[str]) -> dict[str, float]:
    """Images a second of one process, and the share of a lite0 step that waits for its images, with one worker."""
    recipe = load_recipe(
        "lite0", ["data.bad_boxes=drop", f"iterations={STEPS}", "log_every=20", "checkpoint_every=1000"]
    )
    with Console() as console:
        dataset = open_dataset(data, recipe.data, console)
        boxes = open_proposals(dataset, proposals, recipe.detector.proposals, 1, console)
    records = dataset.records
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.sqlite"
        made = make_proposals(records[:SEARCHED], file, ProposalSetting(), workers=1)
        cache = ProposalCache(file)
        found = {
            "selective search": SEARCHED / made.seconds,
            "reading proposals": _rate(2000, lambda i: cache[records[i % SEARCHED].id]),
        }
    found["decoding, augmentation"] = _rate(
        DECODED, lambda i: make_sample(records[i], boxes[records[i].id], recipe.detector.image, flip=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        sources = ohem.Sources(tuple(data), proposals=tuple(proposals))
        run, _ = ohem.train(recipe, sources, folder=Path(folder) / "run", workers=1)
        log = [record["seconds"] for record in Run.open(run).log() if record["kind"] == "train"][1:]
    step = mean(sum(seconds.values()) for seconds in log)
    found["a lite0 step's need"] = recipe.images_per_step / step
    found["share of the step that waits"] = mean(seconds["data"] for seconds in log) / step
    print(line("images a second", found))
    return found


def _rate(count: int, work: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for i in range(count):
        work(i)
    return count / (time.perf_counter() - start)
